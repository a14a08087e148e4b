"""From a finished run to a model folder, and from either to other formats.

  python -m pacx_jax.export --workdir=runs/distill --out=encoder
  python -m pacx_jax.export --encoder=encoder --format=onnx --out=onnx --images=DIR
  python -m pacx_jax.export --encoder=encoder --format=web --out=site --images=DIR \
      --runtime=onnxruntime-web-VERSION.tgz --gallery=embeddings.npz

Each is opened again and compared with the encoder, on X-rays under --images or those
that the run was validated on, before it is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence

from pacx_jax import cli
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.exporting import web, write
from pacx_jax.exporting.source import Source, classifier_of
from pacx_jax.input import images, names, sources
from pacx_jax.run import finished, mirror, model_card, remote_run
from pacx_jax.stores import staging, urls


def _read_model(args: argparse.Namespace) -> tuple[ModelFolder, str]:
    """The encoder that the command line names, and its model card."""
    if args.workdir:
        config = finished.read_config(args.workdir)
        which = args.which or config.export
        heads = args.heads or args.format == "web"
        model = finished.read_run(config, args.workdir, which, heads)
        return model, finished.card(config, args.workdir, model, which)
    model = model_folder.load(args.encoder)
    if args.heads and model.heads is None:
        raise PacxError(
            f"--head: {args.encoder} holds no head: give the workdir of a linear "
            "probe, or a folder that was exported with --head"
        )
    # A page shows a classifier's probabilities wherever there is one.
    if not args.heads and args.format != "web":
        model = dataclasses.replace(model, heads=None)
    folder = model_folder.resolve(args.encoder)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if folder.name == "export":  # of a workdir, maybe measured since then
        text = model_card.measured_since(text, folder.parent)
    return model, text


def _source(args: argparse.Namespace, model: ModelFolder, card: str) -> Source:
    """An X-ray encoder at an image size, maybe with its head."""
    head = classifier_of(model)
    if args.heads and head is None and args.format != "safetensors":
        raise PacxError(
            f"--head: {args.workdir or args.encoder} holds no classifier "
            f"({model.heads.kind}): --format {args.format} takes a linear probe's, "
            "safetensors any"
        )
    model = model_folder.at_size(model, args.image_size)
    make = Source
    if args.format == "web":
        pictures = str(staging.local(args.images)) if args.images else ""
        more = {"runtime": args.runtime, "gallery": args.gallery}
        make = functools.partial(web.Page, **more, pictures=pictures)
    elif args.runtime or args.gallery:
        raise PacxError("--runtime and --gallery go with --format=web")
    if args.view is None:
        return make(model, head, card)
    if args.format == "safetensors":
        raise PacxError("--view: a model folder keeps all views; give a --format")
    source = make(model, head, card, args.view)
    if not source.with_views:
        raise PacxError(f"--view={args.view}: this encoder has no view embeddings")
    source.encoder.view_number(args.view)  # refuses what is no view
    return source


def _x_rays(args: argparse.Namespace, most: int = 8) -> tuple[list, str]:
    """At most `most` X-rays to compare on, evenly spread, and what they are.

    Those of --images, else of the run's own validation split.
    """
    if args.images:
        root = staging.local(args.images)
        files = _some(names.find(root, "--images").paths, most)
        return [root / file for file in files], "given images"
    data = finished.read_config(args.workdir).data
    try:
        source = sources.open_source(data, data.val_split)
        rows = _some(range(len(source)), most)
        decoded = [images.decode(source[i]["image"], source.name(i)) for i in rows]
    except PacxError as e:
        raise PacxError(
            f"--images is missing, and {args.workdir}'s own X-rays cannot be read "
            f"({e}): name a folder of X-rays to compare the export on"
        ) from None
    kind = "SIMULATED validation" if data.get("simulated") else "validation"
    return decoded, f"{kind} images of the run"


def _some(items: Sequence, most: int) -> list:
    n = min(most, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _export(args: argparse.Namespace) -> None:
    """Carries out the command and prints what was written."""
    if args.encoder and args.which:
        raise PacxError("--which goes with --workdir: a folder holds one encoder")
    if args.encoder and not args.out:
        raise PacxError("--out is missing: name the folder to write")
    out = args.out or str(pathlib.Path(args.workdir) / "export")
    if args.encoder and urls.absolute(out) == urls.absolute(args.encoder):
        raise PacxError(f"--out {out} is the encoder itself: name another")
    if args.encoder and pathlib.Path(out).exists():
        if model_folder.resolve(args.encoder).samefile(out):
            raise PacxError(f"--out {out} is the encoder itself: name another")
    model, card = _read_model(args)
    if model.kind != "vit":
        sized = args.image_size and model.kind != "densenet"
        if args.format or args.images or sized or args.view:
            raise PacxError(
                f"{args.workdir or args.encoder} holds a {model.kind} model: only a "
                "vit has --format, --images and --view, and no other but a densenet "
                "--image_size"
            )
        if args.image_size:
            model = model_folder.at_size(model, args.image_size)
        with staging.output(out) as local:
            write.copy(model, card, local)
        print(f"{out}\nread again, the same to the bit")
        return
    if args.encoder and not args.images:
        raise PacxError(
            "--images is missing: name a folder of X-rays, on which the export is "
            "compared with the encoder"
        )
    args.format = args.format or "safetensors"
    if args.format != "safetensors" and not args.out:
        raise PacxError("--out is missing: name the folder to write")
    source = _source(args, model, card)
    with staging.output(out) as local:
        report = write.export(source, args.format, local, *_x_rays(args))
    print(f"{out}\n{report}")
    if use := write.FORMATS[args.format].use:
        print(f"\n{use(source)}")


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(
        prog="pacx_jax.export",
        description=__doc__,
        remote=("workdir", "encoder", "images", "out"),
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
    add("--images", help="X-rays to compare on (default: a run's own)")
    add(
        "--image_size",
        type=int,
        default=0,
        help="pixels a side (default: its own)",
    )
    add(
        "--view",
        help="what a graph takes all images for, such as lateral, of an encoder with "
        "view embeddings (default: frontal)",
    )
    add("--runtime", default="", help=f"with --format=web: what `{web.GET}` gives")
    add(
        "--gallery",
        default="",
        help="with --format=web: embeddings by pacx_jax.embed of images under "
        "--images, of which the nearest are shown",
    )
    args = parser.parse_args(argv)
    if not args.workdir or not urls.is_remote(args.workdir):
        return _export(args)
    url = args.workdir.rstrip("/")
    args.out = args.out or f"{url}/export"
    args.workdir = str(remote_run.finished(url, mirror.STEPS))
    with staging.named(args.workdir, url):
        _export(args)


if __name__ == "__main__":
    sys.exit(main())
