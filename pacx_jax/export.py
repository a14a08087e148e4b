"""From a finished run to a model folder, and from either to other formats.

  python -m pacx_jax.export --workdir=runs/distill --out=encoder
  python -m pacx_jax.export --encoder=encoder --format=onnx --out=onnx --images=DIR

Other formats are opened again and compared with the encoder before they are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

from pacx_jax import embed, finished_run, model_folder
from pacx_jax.exporting import write
from pacx_jax.exporting.source import Source, classifier_of
from pacx_jax.types import PacxError


def read_source(args: argparse.Namespace) -> Source:
    """What the command line names: an encoder at an image size, maybe with its head."""
    if args.workdir:
        config = finished_run.read_config(args.workdir)
        which = args.which or config.export
        model = finished_run.read_run(config, args.workdir, which, args.heads)
        card = finished_run.card(config, args.workdir, model, which)
    else:
        model = model_folder.load(args.encoder, "vit")
        if not args.heads:
            model = dataclasses.replace(model, heads=None)
        card = model_folder.resolve(args.encoder) / "README.md"
        card = card.read_text(encoding="utf-8") if card.is_file() else ""
    given = args.workdir or args.encoder
    if model.kind != "vit":
        raise PacxError(
            f"{given} holds a {model.kind} model: only X-ray encoders have --format"
        )
    if args.heads and model.heads is None:
        raise PacxError(
            f"--head: {given} holds no head: give the workdir of a linear probe, or a "
            "folder that was exported with --head"
        )
    head = classifier_of(model)
    if args.heads and head is None and args.format not in (None, "safetensors"):
        raise PacxError(
            f"--head: {given} holds no classifier ({model.heads.kind}): --format "
            f"{args.format} takes a linear probe's, safetensors any"
        )
    return Source(model_folder.at_size(model, args.image_size), head, card)


def _some(folder: str, most: int = 8) -> list[pathlib.Path]:
    """At most `most` of a folder's images, evenly spread."""
    files = embed.image_files(folder)
    n = min(most, len(files))
    return [files[i * len(files) // n] for i in range(n)]


def _export(args: argparse.Namespace) -> None:
    """Carries out the command and prints what was written."""
    asked = (args.encoder, args.format, args.images, args.image_size)
    if not any(asked):
        config = finished_run.read_config(args.workdir)
        print(
            finished_run.from_workdir(
                config, args.workdir, args.out, args.which, args.heads
            )
        )
        return
    if args.encoder and args.which:
        raise PacxError("--which goes with --workdir: a folder holds one encoder")
    if not args.out:
        raise PacxError("--out is missing: name the folder to write")
    if args.encoder and pathlib.Path(args.out).exists():
        if model_folder.resolve(args.encoder).samefile(args.out):
            raise PacxError(f"--out {args.out} is the encoder itself: name another")
    name = args.format or "safetensors"
    images = _some(args.images) if args.images else None
    source = read_source(args)
    report = write.export(source, name, args.out, images)
    print(f"{args.out}\n{report}")
    if use := write.FORMATS[name].use:
        print(f"\n{use(source)}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="pacx_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--workdir", help="a finished run")
    given.add_argument("--encoder", help="a model folder, or a finished run's workdir")
    add("--out", help="folder to write (default, for a run's model folder: its export)")
    add("--which", choices=("latest", "best"), help="which checkpoint of the run")
    add("--format", choices=tuple(write.FORMATS), help="default: safetensors")
    add(
        "--head",
        "--heads",
        dest="heads",
        action="store_true",
        help="also a linear probe's head; in a model folder, any decoder or adapters",
    )
    add("--images", help="folder of X-rays to compare on (default: synthetic images)")
    add(
        "--image_size",
        type=int,
        default=0,
        help="pixels a side, if not its own",
    )
    args = parser.parse_args(argv)
    try:
        _export(args)
    except (PacxError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
