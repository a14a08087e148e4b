"""Embeds every X-ray under a folder, or every ECG under a folder or in a file.

  python -m pacx_jax.embed --encoder=DIR --images=DIR --out=file.npz
  python -m pacx_jax.embed --encoder=DIR --ecgs=DIR_OR_FILE --out=file.npz
  python -m pacx_jax.embed --encoder=DIR --check

The file holds `path` (n,), relative to the folder and sorted, and `embedding`
(n, width) float32. For ECGs it holds `start_seconds` (n,) too, unless --windows=mean.
--check embeds the 4 images that an export brings along, and compares.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import jax
import numpy as np
import tqdm

from pacx_jax import cli, files, target
from pacx_jax.encoders import golden
from pacx_jax.encoders.ecg_encoder import load_ecg_encoder
from pacx_jax.encoders.xray_encoder import load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.input import ecg, ecg_records, names
from pacx_jax.run import host_memory
from pacx_jax.stores import staging


def embed_folder(
    encoder, folder: str, skip_unreadable: bool, view: str | None = None
) -> tuple[list[str], np.ndarray, list[str]]:
    """Paths, embeddings (n, width) and the messages of images that were skipped.

    `view` names the view of all images, for an encoder with view embeddings.

    Raises:
      PacxError: no such folder, no images in it, or, unless `skip_unreadable`, an
        image that cannot be read.
    """
    root = staging.local(folder, setting="--images")
    found = names.find(root, "--images")
    paths, skipped = [], []
    if passed := found.told():
        print(passed)

    def readable():
        for file in tqdm.tqdm(
            found.paths, desc="embed", unit="img", disable=not sys.stderr.isatty()
        ):
            try:
                image = encoder.preprocess(root / file)
            except PacxError as e:
                if not skip_unreadable:
                    raise
                skipped.append(str(e))
                continue
            paths.append(file)
            yield image

    return paths, encoder(readable(), view), skipped


def embed_ecgs(
    encoder, where: str, args: argparse.Namespace
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays to write for ECGs, and the messages of records that were skipped.

    A record counts whole: one bad window leaves all of it out.

    Raises:
      PacxError: no records, or, unless `args.skip_unreadable`, one that is bad.
    """
    root = staging.local(where, setting="--ecgs")
    paths, starts, skipped = [], [], []
    which = "first" if args.windows == "first" else "all"

    def readable():
        files = ecg_records.find(root)
        for file in tqdm.tqdm(
            files, desc="embed", unit="file", disable=not sys.stderr.isatty()
        ):
            base = root if root.is_dir() else file.parent
            records = ecg_records.read(file, args.fs, args.lead_order)
            while True:
                try:
                    record = next(records, None)
                    if record is None:
                        break
                    windows, seconds = ecg.windows(
                        record.ecg, record.fs, which, args.pad_short, record.name
                    )
                except PacxError as e:
                    if not args.skip_unreadable:
                        raise
                    skipped.append(str(e))
                    continue
                path = pathlib.Path(record.name).relative_to(base).as_posix()
                paths.extend([path] * len(windows))
                starts.extend(seconds)
                yield from windows

    z = encoder(readable())
    if args.windows == "mean":
        records = list(dict.fromkeys(paths))
        row = {name: i for i, name in enumerate(records)}
        rows = np.array([row[path] for path in paths], dtype=int)
        total = np.zeros((len(records), z.shape[1]))
        np.add.at(total, rows, z)
        counts = np.bincount(rows, minlength=len(records))[:, None]
        z = (total / counts).astype(np.float32)
        return {"path": np.array(records, dtype=np.str_), "embedding": z}, skipped
    arrays = {"path": np.array(paths, dtype=np.str_), "embedding": z}
    return arrays | {"start_seconds": np.array(starts, np.float64)}, skipped


def _refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses a flag of X-rays with ECGs, and one of ECGs with X-rays."""
    other, names = "--images", ("image_size", "view")
    if args.ecgs is None:
        other, names = "--ecgs", ("windows", "pad_short", "fs", "lead_order")
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise PacxError(f"--{name} goes with {other}: leave it away")


def _refuse_with_check(parser: argparse.ArgumentParser, args) -> None:
    """Refuses all flags but --encoder and --check."""
    for name, value in vars(args).items():
        if name not in ("encoder", "check") and value != parser.get_default(name):
            raise PacxError(f"--{name} does not go with --check: leave it away")


def _refuse_without_arrays(parser: argparse.ArgumentParser, args) -> None:
    """Refuses what speaks of arrays, where all records have headers of their own."""
    given = [
        n for n in ("fs", "lead_order") if getattr(args, n) != parser.get_default(n)
    ]
    local = staging.local(args.ecgs, setting="--ecgs")
    if given and all(map(ecg_records.header_of, ecg_records.find(local))):
        raise PacxError(
            f"--{given[0]} is of arrays, and {args.ecgs} holds WFDB records alone, "
            "whose headers tell it: leave it away"
        )


def _embed(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays to write, and the messages of what was skipped."""
    if args.ecgs is not None:
        encoder = load_ecg_encoder(args.encoder, args.batch_size, args.dtype)
        return embed_ecgs(encoder, args.ecgs, args)
    encoder = load_encoder(args.encoder, args.batch_size, args.dtype, args.image_size)
    paths, z, skipped = embed_folder(
        encoder, args.images, args.skip_unreadable, args.view
    )
    return {"path": np.array(paths, dtype=np.str_), "embedding": z}, skipped


def check(arrays: dict[str, np.ndarray], skipped: list[str], source: str) -> None:
    """Raises PacxError if there are no embeddings, or some that are not finite."""
    if not len(arrays["embedding"]):
        raise PacxError(
            f"{source}: nothing there can be embedded ({len(skipped)} skipped; the "
            f"first: {skipped[0]})"
        )
    bad = ~np.isfinite(arrays["embedding"]).all(axis=1)
    if bad.any():
        raise PacxError(
            f"{arrays['path'][bad][0]}: its embedding is not finite ({bad.sum()} "
            f"such of {len(bad)}): remove it, or use --dtype=float32"
        )


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="pacx_jax.embed",
        description=__doc__,
        remote=("encoder", "images", "ecgs", "out"),
    )
    parser.add_argument("--encoder", required=True, help="exported folder or workdir")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--check",
        action="store_true",
        help="embed the X-ray encoder's golden images, and compare with what it was "
        "exported with",
    )
    what.add_argument("--images", help="folder of JPEG, PNG or DICOM files")
    what.add_argument("--ecgs", help="WFDB records or .npy: a folder, or one file")
    parser.add_argument("--out", help="the .npz file to write")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="list files that cannot be read and go on",
    )
    parser.add_argument(
        "--image_size", type=int, default=0, help="pixels a side (default: its own)"
    )
    parser.add_argument(
        "--view",
        help="of all images, such as PA or lateral, for an encoder with view "
        "embeddings (default: frontal)",
    )
    ecgs = parser.add_argument_group("with --ecgs")
    ecgs.add_argument(
        "--windows",
        default="first",
        choices=("first", "all", "mean"),
        help="the first 10 s, all whole 10 s, or the mean embedding of these",
    )
    ecgs.add_argument(
        "--pad_short",
        action="store_true",
        help="append zeros to what is shorter than 10 s; otherwise that is an error",
    )
    ecgs.add_argument("--fs", type=float, default=500, help="Hz, of arrays alone")
    ecgs.add_argument(
        "--lead_order",
        default="standard",
        choices=tuple(ecg.LEAD_ORDERS),
        help="of arrays alone",
    )
    return parser


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.check:
        _refuse_with_check(parser, args)
        print(f"{args.encoder}: {golden.check(args.encoder)}")
        return
    host_memory.keep_freed()
    _refuse_unused(parser, args)
    if args.out is None:
        raise PacxError("--out is missing: name the .npz file to write")
    out = pathlib.Path(args.out)
    if out.suffix != ".npz":
        raise PacxError(f"--out {out}: name a file that ends in .npz")
    if out.is_dir():
        raise PacxError(f"--out {out}: a folder; name a file")
    if args.batch_size < 1:
        raise PacxError(f"--batch_size {args.batch_size}: give at least 1")
    if args.ecgs is not None:
        _refuse_without_arrays(parser, args)
    try:
        arrays, skipped = _embed(args)
    except jax.errors.JaxRuntimeError as e:
        text = target.out_of_memory(e, f"give less than --batch_size={args.batch_size}")
        if not text:
            raise
        raise PacxError(text) from None
    check(arrays, skipped, args.images or args.ecgs)
    with staging.output(args.out) as local, files.whole(local, "wb") as file:
        np.savez(file, **arrays)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    n, width = arrays["embedding"].shape
    print(f"{n} embeddings of width {width} in {args.out}")


if __name__ == "__main__":
    sys.exit(main())
