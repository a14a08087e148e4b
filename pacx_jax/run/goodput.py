"""Where a run's time went, over all its sessions: WORKDIR/goodput.json."""

from __future__ import annotations

import pathlib
import time

import jax

from pacx_jax import files
from pacx_jax.errors import PacxError

FILE = "goodput.json"
POLL_SECONDS = 0.005  # between two looks at whether the devices starve
KINDS = (
    "setup",  # imports aside: data, parameters, cached embeddings
    "restore",
    "compile",
    "productive",  # training steps that were new
    "recomputed",  # training steps that an earlier session had done and not saved
    "data_stall",  # waiting for a batch while the devices had nothing to do
    "evaluation",
    "checkpoint",  # what saving held the loop up
    "metrics",  # writing them down
)


class Ledger:
    """Adds the time of a session to what the file says of the earlier ones.

    The loop says what it does next by `enter`. Compilation is taken out of whatever it
    happened in. What a killed session had not written since its last logged step is
    not in the file, nor is the time between sessions.
    """

    def __init__(self, workdir: str, active: bool = True):
        self._path = pathlib.Path(workdir) / FILE if active else None
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._reached = self._sessions = 0
        if self._path is not None and self._path.is_file():
            before = read(workdir)
            self._seconds |= before["seconds"]
            self._reached, self._sessions = before["reached_step"], before["sessions"]
        self._sessions += 1
        self._kind, self._since = "setup", time.perf_counter()
        self._compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_) -> None:
        if event in (
            "/jax/core/compile/backend_compile_duration",
            "/jax/core/compile/jaxpr_to_mlir_module_duration",
        ):
            self._compiling += seconds

    def enter(self, kind: str) -> None:
        """What happens from now on."""
        now = time.perf_counter()
        compiling = min(self._compiling, now - self._since)
        self._seconds["compile"] += compiling
        self._seconds[self._kind] += now - self._since - compiling
        self._kind, self._since, self._compiling = kind, now, 0.0

    def next_batch(self, stream, step: int, last: dict[str, jax.Array] | None):
        """Reads the batch of update `step`, and adds up how long the devices starve.

        They starve from when `last`, the metrics of the update before, is computed.

        Args:
          stream: of batches, see input/prefetch.py.
        """
        self._enter_reading(step, last)
        while not stream.wait(POLL_SECONDS):
            self._enter_reading(step, last)
        batch = next(stream)
        self.enter_step(step)
        return batch

    def _enter_reading(self, step: int, last: dict[str, jax.Array] | None) -> None:
        if last is None or last["loss"].is_ready():
            self.enter("data_stall")
        else:
            self.enter_step(step)

    def enter_step(self, step: int) -> None:
        """Update number `step` happens from now on."""
        self.enter("recomputed" if step <= self._reached else "productive")

    def spent(self, *kinds: str) -> dict[str, float]:
        """Seconds so far of some kinds, over all sessions."""
        self.enter(self._kind)
        return {kind: self._seconds[kind] for kind in kinds}

    def write(self, step: int) -> None:
        """Writes the file; `step` updates are done."""
        self.enter(self._kind)
        self._reached = max(self._reached, step)
        if self._path is not None:
            total = sum(self._seconds.values())
            content = {
                "goodput": round(self._seconds["productive"] / total, 4),
                "seconds": {k: round(v, 3) for k, v in self._seconds.items()},
                "sessions": self._sessions,
                "reached_step": self._reached,
            }
            files.write_json(self._path, content)

    def close(self) -> None:
        """Writes the file and stops listening."""
        self.write(self._reached)
        jax.monitoring.unregister_event_duration_listener(self._on_event)


def read(workdir: str) -> dict:
    """The file's content: `goodput` (productive share), `seconds` by kind, ..."""
    path = pathlib.Path(workdir) / FILE
    remedy = "delete it, and the times of earlier sessions are forgotten"
    content = files.read_own_json(path, remedy)
    missing = {"goodput", "seconds", "sessions", "reached_step"} - set(content)
    if missing or not isinstance(content["seconds"], dict):
        raise PacxError(
            f"{path} is damaged (no {min(missing, default='times')}): {remedy}"
        )
    return content
