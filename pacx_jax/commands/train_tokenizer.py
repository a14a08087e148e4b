"""Trains a tokenizer on a set's training reports.

  pacx tokenizer --data=DIR --target=tokenizer.json --vocab_size=8192

DIR is a set that data/prepare.py wrote, or what data.path takes. The result is a
WordPiece tokenizer.json as the `tokenizers` library writes it, the same for the same
reports. Beside it lies tokenizer.json.pacx.json, which says what it was trained on.
"""

from __future__ import annotations

import sys
import types

from pacx_jax import cli
from pacx_jax.input import reports, sources, tokenizer


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="pacx tokenizer", description=__doc__, remote=("data",))
    parser.add_argument("--data", required=True, help="the set, as in data.path")
    parser.add_argument(
        "--source", default="prepared", choices=("prepared", "folder"), help="its kind"
    )
    parser.add_argument("--target", required=True, help="the tokenizer.json to write")
    parser.add_argument(
        "--vocab_size", type=int, default=30522, help="at most so many tokens"
    )
    parser.add_argument(
        "--sections", default="impression", help="of findings,impression"
    )
    parser.add_argument("--split", default="train", help="the split that runs train on")
    parser.add_argument(
        "--report_length", type=int, default=300, help="tokens that runs read"
    )
    return parser


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    tokenizer.check_split(args.split)
    wanted = reports.sections(args.sections)
    data = types.SimpleNamespace(
        source=args.source, path=args.data, train_split=args.split
    )
    source = sources.open_source(data, args.split)
    made, found = tokenizer.train_on(source, args.target, args.vocab_size, wanted)
    print("\n".join(found.lines()))
    about = tokenizer.coverage(made, found.texts, args.report_length)
    print(
        f"{args.target}: {made.vocab_size} tokens, sha256 {made.sha256[:12]}; a report "
        f"has {about['tokens']:.1f} on average, {about['unknown']:.2%} of them unknown"
    )
    if about["cut"]:
        print(
            f"{about['cut']} reports have more than the {args.report_length} tokens of "
            "data.report_length: runs cut them"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
