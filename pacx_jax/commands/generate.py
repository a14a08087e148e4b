"""Writes reports of X-rays, and measures what a CheXmix writes and fills in.

  pacx generate write --model=runs/masked --tokenizer=tokenizer.json \\
      --images=DIR --out=reports.jsonl
  pacx generate inpainting --model=runs/masked \\
      --tokenizer=tokenizer.json --data=prepared/cxr --out=inpainting.json

write: a report for every X-ray under a folder, greedy or drawn. On a set that
data/prepare.py wrote:
inpainting: L1, PSNR and SSIM of hidden pixels, and of those inside and outside of the
  masks where the data have some, beside the mean image and the report alone;
reports: metrics of reports written from whole and partly hidden X-rays, beside the
  nearest training X-ray's and the most frequent one;
retrieval: of X-rays and reports of each other, by likelihood;
layers: which layers embed best, by probes on validation images.
"""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np

from pacx_jax import cli, files
from pacx_jax.encoders.generator import WAYS, Generator, load_generator
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, generation
from pacx_jax.input import names, sources
from pacx_jax.run import host_memory
from pacx_jax.stores import staging

WHAT = ("write", "inpainting", "reports", "retrieval", "layers")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="pacx generate",
        description=__doc__,
        remote=("model", "tokenizer", "images", "data"),
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--model", required=True, help="exported folder or workdir")
    parser.add_argument("--tokenizer", required=True, help="its tokenizer.json")
    parser.add_argument("--images", help="with write: folder of JPEG, PNG or DICOM")
    parser.add_argument("--data", help="a set that data/prepare.py wrote")
    parser.add_argument("--split", default="test", help="to measure on; layers: val")
    parser.add_argument("--limit", type=int, default=0, help="images; 0: all")
    parser.add_argument("--out", required=True, help="file to write, JSON (lines)")
    parser.add_argument("--shares", default="0.25,0.5,0.75", help="of hidden patches")
    parser.add_argument("--shape", default="random", choices=generation.SHAPES)
    parser.add_argument("--way", default=WAYS[0], choices=WAYS, help="of filling in")
    parser.add_argument("--k", type=int, default=0, help="likeliest to draw; 0: greedy")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of masks and draws")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser


def _shares(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(0 <= share <= 1 for share in found):
        raise PacxError(f"--shares={text}: give numbers from 0 to 1, as 0.25,0.5,0.75")
    return found


def _source(args, split: str):
    if not args.data:
        raise PacxError(f"--data is missing: {args.what} measures on a prepared set")
    data = types.SimpleNamespace(source="prepared", path=args.data)
    return sources.open_source(data, split)


def _write(model: Generator, args, how: dict) -> list[dict]:
    if not args.images:
        raise PacxError("--images is missing: name a folder of X-rays to write about")
    root = staging.local(args.images, setting="--images")
    paths = names.find(root, "--images").paths
    if not paths:
        raise PacxError(f"--images={args.images}: no JPEG, PNG or DICOM file there")
    texts = model.write([root / path for path in paths], seed=args.seed, **how)
    return [{"path": p, "report": t} for p, t in zip(paths, texts, strict=True)]


def _measured(model: Generator, args, how: dict) -> tuple[list[dict], list[dict]]:
    """(rows of numbers, rows of texts)."""
    if args.what == "layers":
        splits = ("train", "val" if args.split == "test" else args.split)
        sets = [features.read_probe_set(_source(args, s)) for s in splits]
        if not sets[0].labels.shape[1]:
            raise PacxError(f"--data={args.data} has no labels: layers needs some")
        return generation.best_layers(model, *sets), []
    studies = generation.read(model, _source(args, args.split), args.limit)
    if args.what == "retrieval":
        return generation.retrieval(model, studies), []
    train = generation.read(model, _source(args, "train"), args.limit)
    shares, rows = _shares(args.shares), []
    if args.what == "reports":
        shares = sorted({0.0, *shares})
        return generation.written_reports(
            [model], studies, train, shares, seed=args.seed, **how
        )
    mean_image = np.mean(train.images, axis=0, dtype=np.float64) / 255
    for share in shares:
        ways = args.shape, args.way, args.seed
        rows += generation.inpainting([model], studies, mean_image, share, *ways, **how)
    return rows, []


def _line(row: dict) -> str:
    """A row of numbers as text: the labels of findings alone are left out."""
    cells, less = [], row.get("model_less", {})
    told = {k: v for k, v in row.items() if k != "model_less" and "/" not in k}
    for name, value in (told | {f"model less this {k}": less[k] for k in less}).items():
        if isinstance(value, dict):
            each = [value[k] for k in ("value", "low", "high")]
            value = "undefined" if each[0] is None else "{:.4g} ({:.4g} to {:.4g})"
            value = value.format(*(math.nan if x is None else x for x in each))
        cells.append(f"{name} {value:.4g}" if isinstance(value, float) else
                     f"{name} {value}")  # fmt: skip
    return ", ".join(cells)


def _plain(row: dict) -> dict:
    """A row for JSON, which has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in row.items()}  # fmt: skip


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    args = _parser().parse_args(argv)
    host_memory.keep_freed()
    if args.batch_size < 1 or args.limit < 0:
        raise PacxError(
            f"--batch_size={args.batch_size}, --limit={args.limit}: give at least 1 "
            "and 0"
        )
    how = {name: getattr(args, name) for name in ("k", "temperature", "top_p")}
    given = args.batch_size, args.dtype
    model = load_generator(args.model, args.tokenizer, *given)
    if args.what == "write":
        rows = _write(model, args, how)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        files.write(args.out, text)
        print(f"{len(rows)} reports in {args.out}")
        return 0
    rows, texts = _measured(model, args, how)
    found = {"model": args.model, "data": args.data, "split": args.split}
    found |= {"rows": [_plain(row) for row in rows], "texts": texts}
    files.write_json(args.out, found)
    print("\n".join(map(_line, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
