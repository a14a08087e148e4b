"""Plans a run for chips that are not there: memory, collectives, predicted speed.

  python launch/plan.py --config=configs/mae_vitb16.py --topology=v5e:16x16 \\
      --global_batch=32768 [--config.FIELD=VALUE ...] [--compiles=2]
  python launch/plan.py --config=configs/distill_vitb16.py --topology=gpu:64xH100
  python launch/plan.py --all --out=docs/scaling.md

The real train step is compiled ahead of time, for TPUs by libtpu (pip install -e
'.[plan]'), for GPUs for as many simulated CPU devices. No data and no weights are read:
encoders that the config does not name have the published sizes. docs/scaling.md says
what of a plan is compiled and what is predicted from that. Tables come first, one line
of JSON last. --all writes the tables of every recipe and pod into a file; what was
compiled before by the same code is found again in --plans.

Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As a script, this file's folder comes first, where nothing is to be found.
sys.path[:] = [
    p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT / "launch"
]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Where libtpu is installed, jax would look for a TPU, long and in vain.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

from launch.planning import chips, plan, report, tables  # noqa: E402
from pacx_jax import main as trainer  # noqa: E402
from pacx_jax.types import PacxError  # noqa: E402

VALUES = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The recipe.", lock_config=True, flag_values=VALUES
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "Such as v5e:16x16, v5p:8x8x16, gpu:64xH100.", flag_values=VALUES
)
_BATCH = flags.DEFINE_integer(
    "global_batch", 0, "Instead of the recipe's global_batch_size.", flag_values=VALUES
)
_COMPILES = flags.DEFINE_integer(
    "compiles", 2, "At most so many to find the largest batch.", flag_values=VALUES
)
_PLANS = flags.DEFINE_string(
    "plans", "runs/plans", "Folder of what was compiled before.", flag_values=VALUES
)
_ALL = flags.DEFINE_bool(
    "all", False, "Plan every recipe for every pod.", flag_values=VALUES
)
_OUT = flags.DEFINE_string(
    "out", "", "With --all: the file whose tables are renewed.", flag_values=VALUES
)
_JOBS = flags.DEFINE_integer(
    "jobs", 2, "With --all: compiles at a time.", flag_values=VALUES
)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    argv = sys.argv if argv is None else ["plan.py", *argv]
    if {"--help", "-h", "--helpfull"} & set(argv[1:]):
        print(__doc__)
        print(VALUES.get_help())
        return 0
    try:
        _run(argv)
    except PacxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(argv: list[str]) -> None:
    rest = trainer.parse_flags(argv, VALUES)[1:]
    if rest:
        raise PacxError(f"unknown argument {rest[0]!r}: flags start with --")
    if _COMPILES.value < 0 or _JOBS.value < 1:
        raise PacxError("give --compiles of at least 0 and --jobs of at least 1")
    cache = ROOT / _PLANS.value
    if _ALL.value:
        if not _OUT.value:
            raise PacxError("--all writes tables: give --out=docs/scaling.md")
        tables.renew(pathlib.Path(_OUT.value), _COMPILES.value, cache, _JOBS.value)
        return
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise PacxError("give --config=configs/<recipe>.py and --topology=v5e:16x16")
    chips.parse(_TOPOLOGY.value)
    config = ml_collections.ConfigDict(_CONFIG.value.to_dict())
    if _BATCH.value < 0:
        raise PacxError(f"--global_batch={_BATCH.value}: give at least 1")
    config.global_batch_size = _BATCH.value or config.global_batch_size
    trainer.check_values(config)
    found = plan.make(config, _TOPOLOGY.value, _COMPILES.value, cache)
    print("\n".join(report.lines(found)))
    print(json.dumps(found.summary()))


if __name__ == "__main__":
    sys.exit(main())
