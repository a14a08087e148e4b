"""Measures a finished run on held-out patients, with intervals.

  pacx evaluate --workdir=runs/finetune --split=test

It is what `pacx_jax.main --evaluate` does, by the configuration that the run was
trained with: WORKDIR/evaluation_SPLIT.json (docs/evaluation.md).
"""

from __future__ import annotations

import sys

from pacx_jax import cli, target, training
from pacx_jax.evaluate import thresholds
from pacx_jax.run import finished, host_memory, remote_run
from pacx_jax.stores import urls


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(prog="pacx evaluate", description=__doc__, remote=("workdir",))
    add = parser.add_argument
    add("--workdir", required=True, help="a finished run")
    add("--split", default="test", help="of its data (default: test)")
    add("--predictions", action="store_true", help="write predictions_SPLIT.csv too")
    add("--groups", default="", help="a CSV with sex and age, by path or patient")
    text = "columns of --groups, with commas between (default: those of sex and age)"
    add("--group_columns", default="", help=text)
    text = "rules by which thresholds are chosen on validation, with commas between"
    add("--thresholds", default=",".join(thresholds.RULES), help=text)
    args = parser.parse_args(argv)
    host_memory.keep_freed()
    target.check_backend()
    near = args.workdir
    if urls.is_remote(near):
        near = str(remote_run.finished(near, ()))
    training.measure(
        finished.read_config(near),
        args.workdir,
        args.split,
        predictions=args.predictions,
        groups=args.groups,
        group_columns=tuple(filter(None, args.group_columns.split(","))),
        thresholds=tuple(filter(None, args.thresholds.split(","))),
    )


if __name__ == "__main__":
    sys.exit(main())
