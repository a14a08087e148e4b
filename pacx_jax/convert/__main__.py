"""Converts a published PyTorch checkpoint to a model folder, and back.

  python -m pacx_jax.convert --kind=mae --source=checkpoint.pth --target=DIR
  python -m pacx_jax.convert --kind=mae --to=torch --source=DIR --target=FILE

Kinds: mae (the original repository's, or Lightning's), mvmae, vit_timm, vit_hf (ViT and
ViTMAE of transformers), dinov2 (the original's and timm's), dinov2_hf (transformers'),
eva02 (EVA-X's and timm's), densenet (torchvision's and timm's), densenet_xrv
(torchxrayvision's), pacx (with LoRA, or merged), labs_dae, ecgfounder, probe and
segment (an encoder with its head). The folder opens with load_encoder, embed, export
and --config.model_init. A FILE named .safetensors needs no PyTorch.
"""

from __future__ import annotations

import csv
import functools
import pathlib
import sys

import numpy as np

from pacx_jax import cli
from pacx_jax.convert import beside, files, kinds, layouts, state, tables
from pacx_jax.convert.layouts import KINDS
from pacx_jax.convert.options import CHOICES, Options
from pacx_jax.encoders import model_folder
from pacx_jax.errors import INSTALL, PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD
from pacx_jax.run import finished, mirror, remote_run
from pacx_jax.stores import objects, staging, urls

# Options of one direction alone.
OPTIONS = ("num_heads", "decoder_num_heads", "ln_eps", "final_ln_eps", "alpha", "mean",
           "std", "decimate", "labels", "task", "pool", "rotary_grid",
           "posemb_resampling")  # fmt: skip
IN, OUT = (*OPTIONS, "preset", "weights"), ("merged", "container")

CARD = """# pacx_jax {model}

Converted by pacx_jax from a PyTorch checkpoint of kind `{kind}` ({name}), {count:,}
parameters. {weights}

## Use
{install}

{use}

## Limits
For research. Not a medical device. The source of the checkpoint says what it was
trained on, and under which licence and limits it is.
"""


USE = {
    "vit": 'pacx_jax.load_encoder("path/to/this/folder")(["image.png"]), or '
    "--config.model_init.",
    "densenet": 'pacx_jax.load_encoder("path/to/this/folder")(["image.png"]), or '
    "--config.model_init of a linear probe.",
    "ecg_net1d": "python -m pacx_jax.embed --encoder=DIR --ecgs=RECORDS, or "
    "--config.modalities.ecg.init.",
    "labs_dae": "--config.modalities.labs.init of Stage 2.",
}


def from_torch(args) -> None:
    """A checkpoint becomes a model folder."""
    target = pathlib.Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PacxError(f"{target} exists: give another --target, or delete it")
    source = files.find(args.source)
    if model_folder.is_ours(source.parent):
        raise PacxError(
            f"{source.parent} is a model folder already; --to=torch makes a checkpoint"
        )
    options, sizes = _options(args, source)
    found = files.read(source, args.weights or "", KINDS[args.kind].anchor)
    folder, left = kinds.read(args.kind, found.state, options, str(source))
    for name, value in sizes.items():
        size = folder.architecture.get(name, 0)
        if size != value:
            raise PacxError(
                f"{source} has {name} {size}, and the config.json beside it says "
                f"{value}: they do not belong together"
            )
    _refuse_unused(args, folder)
    leaves = [v for k, v in found.state.items() if k not in left]
    count = sum(np.size(v) for v in leaves)
    notes = []
    if found.others:
        others = ", ".join(name or "(no key)" for name in found.others)
        notes = [f"taken: {found.name or '(no key)'}", f"not taken: {others}"]
    elif found.name:
        notes = [f"taken: {found.name}"]
    if left:
        notes.append(f"left out: {state.shorten(left)}")
    card = CARD.format(
        model=folder.kind,
        kind=args.kind,
        name=source.name,
        count=count,
        install=INSTALL,
        use=USE[folder.kind],
        weights=f"Of its weights {'; '.join(notes)}." if notes else "",
    )
    model_folder.save(args.target, folder, card)
    heads = f", with {folder.heads.kind} heads" if folder.heads else ""
    notes += _learned(folder, args.kind)
    print(
        f"{args.kind}: {len(leaves)} tensors, {count:,} values -> a {folder.kind} "
        f"model{heads} in {'; '.join([args.target, *notes])}"
    )


def _learned(folder: model_folder.ModelFolder, kind: str) -> list[str]:
    """Says that an MAE's positions are not the fixed ones, which nobody may expect."""
    a, heads = folder.architecture, folder.heads
    of_mae = kind in ("mae", "pacx") or (heads and heads.kind == "mae")
    if kind == "mvmae" or not of_mae or "posemb_grid" not in a:
        return []
    told = "kept as learned: its positions"
    if a["width"] % 4 == 0:
        fixed = tables.positions(a["posemb_grid"][0], a["width"])
        error = np.abs(folder.params["pos_embed"] - fixed).max()
        told += f", which differ from MAE's fixed sin-cos ones by up to {error:.2g}"
    return [told]


def to_torch(args) -> None:
    """A model folder, or a run with all it trained, becomes a checkpoint."""
    if args.container is not None and args.target.endswith(".safetensors"):
        raise PacxError(
            "--container is for PyTorch files: a .safetensors file holds the keys alone"
        )
    folder = open_source(args.source)
    if args.merged and not (folder.heads and folder.heads.architecture.get("adapted")):
        raise PacxError(f"--merged is given, and {args.source} holds no LoRA adapter")
    state = kinds.write(args.kind, folder, bool(args.merged))
    container = args.container
    if container is None:
        container = KINDS[args.kind].container
    if args.kind == "mae" and container != "state_dict":  # the original repository's
        state = {k.removeprefix("model."): v for k, v in state.items()}
    files.write(args.target, state, container)
    count = sum(np.size(v) for v in state.values())
    flags = kinds.lost(args.kind, folder, bool(args.merged))
    told = f"; on the way back give {' '.join(flags)}" if flags else ""
    if folder.heads and not layouts.of_folder(args.kind, folder).heads:
        told = f"; left out: the {folder.heads.kind} heads{told}"
    print(f"{args.kind}: {len(state)} tensors, {count:,} values -> {args.target}{told}")


def open_source(path: str) -> model_folder.ModelFolder:
    """The model folder at `path`; of a run's workdir with the heads that it trained."""
    if (pathlib.Path(path) / "done.json").is_file():
        return finished.read_run(finished.read_config(path), path, heads=True)
    return model_folder.load(path)


def _refuse_unused(args, folder: model_folder.ModelFolder) -> None:
    """Refuses an option that speaks of a part which the file does not hold."""
    applies = {*kinds.told(args.kind, folder), "weights"}
    if "ln_eps" in applies:
        applies.add("final_ln_eps")
    if applies & {"mean", "mask_inputs"}:
        applies.add("preset")
    for name in IN:
        if getattr(args, name) is not None and name not in applies:
            raise PacxError(
                f"--{name} says nothing of {args.source}, which as --kind={args.kind} "
                "holds no such part: leave it away"
            )


def _options(args, weights: pathlib.Path) -> tuple[Options, dict]:
    """What files beside the weights and the command line tell; the latter wins.

    Returns:
      the options, and the sizes that the weights must have.
    """
    given = {k: getattr(args, k) for k in OPTIONS if getattr(args, k) is not None}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    Options(**given)  # refuses what the flags alone are to blame for
    fields, sizes = beside.read(args.kind, weights)
    if args.preset == "reference":
        fields |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "mask_inputs": False}
    elif args.kind in ("vit_hf", "dinov2_hf") and not (args.mean and args.std):
        fields |= beside.images(weights)
    try:
        return Options(**(fields | given)), sizes
    except PacxError as e:
        raise PacxError(f"the config beside {weights} says {e}") from None


def _labels(text: str) -> tuple[str, ...]:
    """Names from a row of CSV; one that is empty or repeated names no output."""
    names = tuple(next(csv.reader([text]), []))
    if not names or not all(map(str.strip, names)) or len(set(names)) < len(names):
        raise PacxError(f"--labels {text!r}: give each output a name of its own")
    return names


def parser() -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        prog="pacx_jax.convert", description=__doc__, remote=("source", "target")
    )
    add = parser.add_argument
    add("--kind", required=True, choices=KINDS)
    add("--source", required=True, help="checkpoint; with --to=torch a folder or run")
    add("--target", required=True, help="folder to write; with --to=torch a file")
    add("--to", choices=("jax", "torch"), default="jax")
    add(
        "--weights",
        metavar="ema|model|KEY",
        help="which weights of a file that holds several, such as model and model_ema",
    )
    add(
        "--preset",
        choices=("ours", "reference"),
        help="reference: as the authors' code: missing labs not zeroed (D7), ImageNet "
        "statistics for every backbone (D34)",
    )
    add("--num_heads", type=int, help="where the width does not tell")
    add("--decoder_num_heads", type=int)
    add("--ln_eps", type=float, help="default: the kind's published one")
    add("--final_ln_eps", type=float, help="of the last LayerNorm (mvmae: 1e-5)")
    add("--alpha", type=float, help="of LoRA (pacx; default 16)")
    add("--mean", type=float, nargs="+", help="of each channel, in [0, 1]")
    add("--std", type=float, nargs="+", help="of each channel, above 0, to 1")
    add("--decimate", type=int, help="of an ECG encoder (ecgfounder; default 1)")
    add("--labels", type=_labels, help="names of a classifier's outputs, as CSV")
    add("--task", choices=CHOICES["task"], help="of a classifier")
    add("--pool", choices=CHOICES["pool"], help="what the embedding is (eva02)")
    add(
        "--rotary_grid",
        type=int,
        help="patches a side of the images of pretraining (eva02; default 224 pixels')",
    )
    add(
        "--posemb_resampling",
        choices=CHOICES["posemb_resampling"],
        help="of learned positions for other image sizes (dinov2, dinov2_hf)",
    )
    add(
        "--merged",
        action="store_true",
        default=None,
        help="--to=torch of pacx: without adapters",
    )
    add(
        "--container",
        choices=("state_dict", "model", ""),
        help="--to=torch: the key under which the file holds the state dict",
    )
    return parser


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = parser().parse_args(argv)
    way, wrong = (to_torch, IN) if args.to == "torch" else (from_torch, OUT)
    other = "jax" if args.to == "torch" else "torch"
    for name in wrong:
        if getattr(args, name) is not None:
            raise PacxError(f"--{name} is for --to={other} alone: leave it away")
    source, target = args.source, args.target
    if urls.is_remote(target) and way is from_torch and objects.Store(target).list():
        raise PacxError(f"{target} exists: give another --target, or delete it")
    if urls.is_remote(source):
        run = functools.partial(remote_run.finished, kinds=mirror.STEPS)
        args.source = str((staging.local if way is from_torch else run)(source))
    with staging.named(args.source, source), staging.output(target) as local:
        args.target = str(local) if urls.is_remote(target) else target
        with staging.named(local, target):
            way(args)


if __name__ == "__main__":
    sys.exit(main())
