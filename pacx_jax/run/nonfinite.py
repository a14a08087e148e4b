"""Detects non-finite losses and gradients, and skips the step or stops the run.

The train step itself changes no parameter if its loss or gradient is not finite, so a
bad batch can never reach a checkpoint. This file decides whether the run goes on
(`config.nonfinite`), and lists the steps.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Callable

import jax

from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import metrics

FILE = "nonfinite.jsonl"


class Numbers:
    """Watches the loss and the gradient's norm of every step.

    They are fetched when `fetch` is called, so that the device need not be waited for
    at every step.

    Args:
      config: `nonfinite` is "stop" or "skip"; `max_skipped` steps at most are skipped.
      workdir: of the run; FILE lists the steps with their samples.
      start: steps done; later rows of the file are dropped.
      samples: step number from 0 -> names of the samples of its batch.
    """

    def __init__(
        self, config, workdir: str, start: int, samples: Callable[[int], list[str]]
    ):
        self._policy, self._most = config.nonfinite, config.max_skipped
        self._workdir, self._samples = workdir, samples
        self._path = pathlib.Path(workdir) / FILE
        self._waiting: list[tuple] = []
        self._skipped = 0
        if processes.is_first():
            metrics.keep_rows(self._path, start)
        # Others wait for the first's rows, or they would count later ones as well.
        self._skipped = processes.agreed(self._listed() if processes.is_first() else 0)

    def _listed(self) -> int:
        """How many steps the file names."""
        if not self._path.exists():
            return 0
        return len(self._path.read_text("utf-8").splitlines())

    def add(self, n: int, values: dict[str, jax.Array]) -> None:
        """Remembers the values of update number n, still on the device."""
        self._waiting.append((n, values["loss"], values["grad_norm"]))

    def fetch(self, values: dict[str, jax.Array]) -> dict[str, float]:
        """The metrics of the last step as numbers, after a look at all before it."""
        self.check()
        return fetch(values)

    def check(self) -> None:
        """Looks at all steps since the last call.

        Raises:
          PacxError: a value that is not finite, where the policy is to stop, or one
            more of them than may be skipped.
        """
        waiting, self._waiting = jax.device_get(self._waiting), []
        for n, loss, norm in waiting:
            if math.isfinite(loss) and math.isfinite(norm):
                continue
            name = "grad_norm" if math.isfinite(loss) else "loss"
            value = norm if math.isfinite(loss) else loss
            told = f"the {name} is {float(value)} at step {n}"
            self._list(n, float(loss), float(norm))
            self._skipped += 1
            again = (
                f"{self._path} names its samples; to see that step again: pacx replay "
                f"--workdir={self._workdir} --step={n}"
            )
            if self._policy == "stop":
                raise PacxError(
                    f"{told}: lower config.optim.peak_lr or use config.dtype=float32, "
                    "by another --workdir or --force, or go on without such steps by "
                    f"--config.nonfinite=skip. {again}"
                )
            if self._skipped > self._most:
                raise PacxError(
                    f"{told}, the {self._skipped}th such step: more than "
                    f"config.max_skipped={self._most}. {again}"
                )
            if processes.is_first():
                print(f"warning: {told}: skipped. {again}", file=sys.stderr, flush=True)

    def _list(self, n: int, loss: float, norm: float) -> None:
        if processes.is_first():
            row = {"step": n, "loss": str(loss), "grad_norm": str(norm)}
            row["samples"] = self._samples(n - 1)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def fetch(values: dict[str, jax.Array]) -> dict[str, float]:
    """A step's metrics, once it is done."""
    return {k: float(v) for k, v in jax.device_get(values).items()}
