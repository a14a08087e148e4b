"""Trains one stage.

  python -m pacx_jax.main --config=configs/mae_vitb16.py --workdir=runs/mae
  python -m pacx_jax.main --config=configs/distill_vitb16.py:runlocal \\
      --workdir=runs/distill --config.loss.clip_weight=0.0

A run that was stopped goes on where its last checkpoint stands; a finished one is left
as it is. With --evaluate=SPLIT a finished run is measured on held-out patients.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import sys
import threading

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from pacx_jax import disk, host_memory, locks
from pacx_jax.types import PacxError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_EVALUATE = flags.DEFINE_string(
    "evaluate", "", "Measure the finished run on this split, such as test."
)


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains `config` in `workdir` and exports its encoder.

    Raises:
      PacxError: whatever is wrong with the config, the data or the workdir.
    """
    import jax  # after flags, so that --help is quick

    check_values(config)
    path = pathlib.Path(workdir)
    written = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
    record = path / "config.json"
    # A run that stopped at its first error has claimed nothing: it may be mended.
    if record.exists() and (path / "metrics.jsonl").exists():
        check_same(json.loads(record.read_text()), json.loads(written), workdir)
    if (path / "done.json").exists():
        print(f"{config.name}: {workdir} is finished, nothing to do")
        return
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:  # the processes of one run share its workdir
            refusal = f"{workdir}: another run is writing here: take another --workdir"
            stack.enter_context(locks.held(path / "lock", refusal))
        record.write_text(written, encoding="utf-8")
        _train(config, workdir)


def _train(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains, exports, marks the run as finished and says so."""
    from pacx_jax import finished_run, train

    path = pathlib.Path(workdir)
    metrics = train.train(config, workdir)
    target = finished_run.from_workdir(config, workdir)
    metrics = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    done = {"step": config.total_steps, "metrics": metrics}
    (path / "done.json").write_text(json.dumps(done) + "\n", encoding="utf-8")
    keys = ("val/loss", "val/auroc_macro", "val/dice")
    shown = [k for k in keys if metrics.get(k) is not None]
    text = ", ".join(f"{k} {metrics[k]:.4f}" for k in shown)
    print(f"{config.name}: step {config.total_steps}, {text}; encoder in {target}")


def measure(config: ml_collections.ConfigDict, workdir: str, split: str) -> None:
    """Prints the finished run's metrics on a split (see evaluate.held_out)."""
    from pacx_jax.evaluate import held_out

    record = pathlib.Path(workdir) / "config.json"
    if record.exists():  # other fields would be other patients, or another model
        written = json.loads(json.dumps(config.to_dict()))
        check_same(json.loads(record.read_text()), written, workdir)
    result = held_out.evaluate(config, workdir, split)
    for name, row in result.pop("intervals", {}).items():
        label = "auroc" in row
        value = f": AUROC {row['auroc']:.3f}" if label else f" {row['value']:.3f}"
        print(f"{name}{value} (95% interval {row['low']:.3f} to {row['high']:.3f})")
    print(", ".join(f"{k} {v}" for k, v in result.items()))


def check_values(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers that no run can have, before anything is read."""
    flat = _flat(config.to_dict())
    least = dict.fromkeys(("global_batch_size", "total_steps", "keep"), 1)
    least |= dict.fromkeys(("log_every", "eval_every", "save_every", "lora.rank"), 1)
    least |= dict.fromkeys(("model.patch_size", "data.image_size"), 1)
    least |= dict.fromkeys(("num_devices", "data.threads", "optim.peak_lr"), 0)
    least |= dict.fromkeys(("optim.warmup_steps", "optim.weight_decay"), 0)
    for name, low in least.items():
        if flat.get(name, low) < low:
            raise PacxError(f"config.{name} is {flat[name]}: give at least {low}")
    if flat.get("loss.temperature", 1) <= 0:
        raise PacxError(
            f"config.loss.temperature is {flat['loss.temperature']}: give more than 0"
        )
    if config.dtype not in ("float32", "bfloat16", "float16"):
        raise PacxError(f"config.dtype {config.dtype!r}: choose float32 or bfloat16")
    if config.export not in ("latest", "best"):
        raise PacxError(f"config.export {config.export!r}: choose latest or best")
    if config.export == "best" and not config.best:
        raise PacxError("config.export=best needs config.best, such as 'val/loss'")


def check_same(old: dict, new: dict, workdir: str) -> None:
    """A workdir belongs to one config: refuses another, and lists what differs."""
    old, new = _flat(old), _flat(new)
    free = {"data.threads", "log_every", "keep", "num_devices", "cache_dir"}
    free |= {"data.max_bad_share", "data.cache"}
    free |= {"data.namespace", "data.allow_overlap"}
    differing = [
        f"{k} was {old.get(k)!r}, is {new.get(k)!r}"
        for k in sorted(set(old) | set(new))
        if old.get(k) != new.get(k) and k not in free
    ]
    if differing:
        raise PacxError(
            f"{workdir} holds a run of another config: {'; '.join(differing)}. "
            "Take another --workdir, or delete this one"
        )


def _flat(tree: dict, prefix: str = "") -> dict:
    out = {}
    for k, v in tree.items():
        if isinstance(v, dict):
            out |= _flat(v, f"{prefix}{k}.")
        else:
            out[prefix + k] = v
    return out


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise PacxError(f"unknown argument {argv[1]!r}: flags start with --")
    if _CONFIG.value is None or not _WORKDIR.value:
        raise PacxError("give --config=configs/<recipe>.py and --workdir=DIR")
    host_memory.keep_freed()
    logging.set_verbosity(logging.WARNING)  # Orbax narrates every save
    if _EVALUATE.value:
        measure(_CONFIG.value, _WORKDIR.value, _EVALUATE.value)
    else:
        run(_CONFIG.value, _WORKDIR.value)


def main() -> None:
    """The command line: an error of the user's is one line and exit code 2."""
    threading.excepthook = _thread_failed
    try:
        app.run(_main, flags_parser=_parse)
    except PacxError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last checkpoint", flush=True)
        sys.exit(130)
    except Exception as e:
        if disk.is_full(e):
            _stop_on_full_disk()
        if not isinstance(e, OSError):  # such as a missing permission
            raise
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread without room stops the run: without it, others would wait for it."""
    if disk.is_full(failure.exc_value):
        _stop_on_full_disk()
    threading.__excepthook__(failure)


def _stop_on_full_disk() -> None:
    """Ends at once: closing files that cannot be written would raise again."""
    print(f"error: {disk.told(_WORKDIR.value)}", file=sys.stderr, flush=True)
    os._exit(2)


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, whatever it raises made one line."""
    for argument in argv[1:]:
        name, _, value = argument.partition("=")
        file = value.partition(":")[0]
        if name.lstrip("-") == "config" and not pathlib.Path(file).is_file():
            raise PacxError(
                f"--config {file}: no such file; run from the root of the clone"
            )
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        text = str(e.args[0]) if e.args else type(e).__name__
        if isinstance(e, (AttributeError, KeyError)):
            text = text.strip("'\"").replace("\\'", "'").replace("\\n", " ")
            text = f"unknown config field {text} (the recipe lists its fields)"
        if "Traceback" in text:  # of a recipe's own error: what it said stands last
            text = text.strip().splitlines()[-1].partition(": ")[2]
        raise PacxError(" ".join(text.split())) from None


if __name__ == "__main__":
    main()
