"""Plans a run for chips that are not there: memory, collectives, predicted speed.

  python launch/plan.py --config=configs/mae_vitb16.py --topology=v5e:16x16 \\
      --global_batch=32768 [--config.FIELD=VALUE ...]
  python launch/plan.py --config=configs/distill_vitb16.py --topology=gpu:64xH100
  python launch/plan.py --all --out=docs/scaling.md

The real train step is compiled ahead of time: for TPUs by libtpu (pip install -e
'.[plan]'), for H100 and H200 by JAX's CUDA plugin ('.[plan-gpu]'). No data and no
weights are read: encoders that the config does not name have the published sizes.
docs/scaling.md says what of a plan is compiled and what is predicted from that. Tables
come first, one line of JSON last. --all writes the tables of every recipe and pod into
a file; what was compiled before by the same code is found again in --plans.

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

from launch.planning import chips, plan, report  # noqa: E402
from pacx_jax import cli  # noqa: E402
from pacx_jax import main as trainer  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.run import clone, recipe_flags  # noqa: E402


def define() -> flags.FlagValues:
    """The command's flags, apart from those of other programs."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "The recipe.", flag_values=values, lock_config=True
    )
    for name, default, text in (
        ("topology", "", "Such as v5e:16x16, v5p:8x8x16, gpu:64xH100."),
        ("plans", "runs/plans", "Folder of what was compiled before."),
        ("out", "", "With --all: the file whose tables are renewed."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    text = "Instead of the recipe's global_batch_size."
    flags.DEFINE_integer("global_batch", 0, text, 0, flag_values=values)
    text = "Plan every recipe for every pod."
    flags.DEFINE_bool("all", False, text, flag_values=values)
    return values


@cli.command
def main() -> None:
    """Runs the command of sys.argv."""
    given = define()
    if {"--help", "-h", "--helpfull"} & set(sys.argv[1:]):
        print(__doc__)
        print(given.get_help())
        return
    rest = recipe_flags.parse(sys.argv, given)[1:]
    cli.refuse_remote("--plans", given.plans)
    if rest:
        raise PacxError(f"unknown argument {rest[0]!r}: flags start with --")
    base = pathlib.Path.cwd() if ROOT == clone.INSTALLED else ROOT
    cache = base / given.plans
    if given["all"].value:
        if not given.out:
            raise PacxError("--all writes tables: give --out=docs/scaling.md")
        report.renew(pathlib.Path(given.out), cache)
        return
    if given.config is None or not given.topology:
        raise PacxError("give --config=configs/<recipe>.py and --topology=v5e:16x16")
    chips.parse(given.topology)
    config = ml_collections.ConfigDict(given.config.to_dict())
    config.global_batch_size = given.global_batch or config.global_batch_size
    trainer.check_values(config)
    found = plan.make(config, given.topology, cache)
    print("\n".join(report.lines(found)))
    print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
