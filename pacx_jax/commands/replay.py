"""Takes one step of a run again, from its last checkpoint before that step.

  pacx replay --workdir=runs/mae --step=1234

Prints the step's loss and metrics, its samples, and whether the loss is the logged one
to the last bit. Where no checkpoint before the step is left, the run's beginning is
computed again. Nothing in the workdir is changed.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import tqdm

from pacx_jax import cli, files
from pacx_jax.errors import PacxError
from pacx_jax.run import (
    batches,
    checkpoint,
    fingerprints,
    finished,
    metrics,
    nonfinite,
    remote_run,
    saved_steps,
    setup,
)
from pacx_jax.stores import staging


def replay(workdir: str, n: int) -> dict:
    """Takes update number `n` (from 1) of a run again.

    Returns:
      `step`, `from_step` (the state it began with), `metrics` of the step, `logged`
      (whether the loss equals the logged one bit for bit; None where that step was not
      logged), `samples`, and `not_finite`: names of the batch's arrays that hold what
      is not a number.
    """
    config = finished.read_config(workdir)
    if not 1 <= n <= config.total_steps:
        raise PacxError(f"--step {n}: {workdir} has steps 1 to {config.total_steps}")
    rows = metrics.read_rows(workdir)
    with tempfile.TemporaryDirectory() as scratch:  # what a set-up writes: caches
        config.cache_dir = config.get("cache_dir") or str(
            pathlib.Path(workdir).absolute() / "cache"
        )
        run = setup.prepare(config, scratch, batches.open_sources(config))
        _check_data(workdir, run)
        start, state = _state_before(workdir, n, run)
        steps = range(start + 1, n + 1)
        with contextlib.closing(run.data.train(start)) as stream:
            for _ in tqdm.tqdm(steps, disable=not sys.stderr.isatty(), unit="step"):
                batch = next(stream)
                state, values = run.train_step(state, batch, run.step_key)
        now = nonfinite.fetch(values)
        not_finite = [
            name
            for name, array in batch.items()
            if np.issubdtype(array.dtype, np.floating)
            and not np.isfinite(np.asarray(array)).all()
        ]
        return {
            "step": n,
            "from_step": start,
            "metrics": now,
            "logged": _as_logged(rows, n, now["loss"]),
            "samples": run.data.sample_names(n - 1),
            "not_finite": not_finite,
        }


def _state_before(workdir: str, n: int, run: setup.Run):
    """The newest saved state from before update `n`, or the run's first."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    step, about, _ = saved_steps.newest(folder, before=n)
    if step is None:
        return 0, run.init()
    return step, checkpoint.restore(folder / str(step), about, run.abstract)


def _check_data(workdir: str, run: setup.Run) -> None:
    """PacxError where the run's data or first weights are others by now."""
    path = pathlib.Path(workdir) / fingerprints.DATA
    if not path.is_file():  # as of the first versions' runs
        text = "whether the data are the run's cannot be checked"
        saved_steps.warn(f"{path} is missing: {text}")
        return
    old = files.read_own_json(path, "restore it from a copy")
    differing = fingerprints.differences(old, run.fingerprints())
    if differing:
        raise PacxError(
            f"{workdir} is a run on other data: {'; '.join(differing)}. Its steps can "
            "be taken again with its own alone"
        )


def _as_logged(rows: list[dict], n: int, loss: float) -> bool | None:
    for row in rows:
        if row["step"] == n and "loss" in row:
            return row["loss"] == (loss if np.isfinite(loss) else None)
    return None


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line; the last line printed is JSON."""
    parser = cli.Parser(prog="pacx replay", description=__doc__, remote=("workdir",))
    parser.add_argument("--workdir", required=True, help="of the run")
    parser.add_argument("--step", type=int, required=True, help="the update, from 1")
    args = parser.parse_args(argv)
    local = remote_run.finished(args.workdir, every=True)
    with staging.named(local, args.workdir.rstrip("/")):
        result = replay(str(local), args.step)
    told = {None: "was not logged", True: "is the logged one, bit for bit"}
    told[False] = (
        f"is NOT the logged one: other devices ({jax.device_count()} here), another "
        "version of jax or of this code, or data that changed inside its files?"
    )
    print(f"step {args.step}, from the state of step {result['from_step']}:")
    print(f"the loss, {result['metrics']['loss']!r}, {told[result['logged']]}")
    print(json.dumps(result))
    return 1 if result["logged"] is False else 0


if __name__ == "__main__":
    sys.exit(main())
