"""Converts a published PyTorch checkpoint to a model folder, and back.

  python -m pacx_jax.convert --kind=mae --source=checkpoint.pth --target=DIR
  python -m pacx_jax.convert --kind=mae --to=torch --source=DIR --target=FILE

Kinds: mae (the original repository's, or Lightning's), vit_timm, vit_hf (ViT and
ViTMAE of transformers), pacx (with LoRA, or merged), labs_dae, ecgfounder, probe and
segment (an encoder with its head). The folder opens with load_encoder, embed, export
and --config.model_init. A FILE named .safetensors needs no PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
import sys

import numpy as np

from pacx_jax import cli
from pacx_jax.convert import beside, files, kinds, layouts, tables
from pacx_jax.convert.layouts import KINDS, MODELS
from pacx_jax.convert.sizes import Options
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD
from pacx_jax.run import finished

# Under what a PyTorch file of the kind holds its state dict.
CONTAINER = dict.fromkeys(KINDS, "state_dict") | {"vit_timm": "", "vit_hf": ""}

# Which kinds an option is for, on the way in and on the way out.
VITS = tuple(kind for kind in KINDS if kind not in MODELS)
CLASSIFIERS = ("vit_timm", "vit_hf", "probe")
IN = dict.fromkeys(("num_heads", "ln_eps", "mean", "std"), VITS) | {
    "preset": (*VITS, "labs_dae"),
    "decoder_num_heads": ("mae", "vit_hf"),
    "alpha": ("pacx",),
    "decimate": ("ecgfounder",),
    "labels": (*CLASSIFIERS, "ecgfounder"),
    "task": CLASSIFIERS,
}
OUT = {"merged": ("pacx",), "container": KINDS}

CARD = """# {title}

Converted by pacx_jax from a PyTorch checkpoint of kind `{kind}` ({name}), {count:,}
parameters. {left}

## Use
{use}

## Limits
For research. Not a medical device. The source of the checkpoint says what it was
trained on, and under which licence and limits it is.
"""


USE = {
    "vit": 'pacx_jax.load_encoder("path/to/this/folder")(["image.png"]), or '
    "--config.model_init.",
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
    options, told = _options(args, source)
    found = files.read(source)
    folder, left = kinds.read(args.kind, found, options, str(source))
    for name, value in told.items():
        if folder.architecture[name] != value:
            raise PacxError(
                f"{source} has {name} {folder.architecture[name]}, and the config.json "
                f"beside it says {value}: they do not belong together"
            )
    _refuse_unused(args, folder)
    leaves = [v for k, v in found.items() if k not in left]
    count = sum(np.size(v) for v in leaves)
    card = CARD.format(
        title=f"pacx_jax {folder.kind}",
        kind=args.kind,
        name=source.name,
        count=count,
        use=USE[folder.kind],
        left=f"Left out: {', '.join(left)}." if left else "Nothing was left out.",
    )
    model_folder.save(args.target, folder, card)
    beside = f", with {folder.heads.kind} heads" if folder.heads else ""
    print(
        f"{args.kind}: {len(leaves)} tensors, {count:,} values -> a {folder.kind} "
        f"model{beside} in {args.target}"
        + (f"; left out: {', '.join(left)}" if left else "")
        + _learned(folder, args.kind)
    )


def _learned(folder: model_folder.ModelFolder, kind: str) -> str:
    """Says that an MAE's positions are not the fixed ones, which nobody may expect."""
    a, heads = folder.architecture, folder.heads
    of_mae = kind in ("mae", "pacx") or (heads and heads.kind == "mae")
    if not of_mae or "posemb_grid" not in a:
        return ""
    told = ""
    if a["width"] % 4 == 0:
        fixed = tables.positions(a["posemb_grid"][0], a["width"])
        error = np.abs(folder.params["pos_embed"] - fixed).max()
        told = f", which differ from MAE's fixed sin-cos ones by up to {error:.2g}"
    return f"; kept as learned: its positions{told}"


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
    container = CONTAINER[args.kind] if args.container is None else args.container
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


def check_options(args) -> None:
    """Refuses an option that says nothing of this kind, or in this direction."""
    way, other, to = (OUT, IN, "jax") if args.to == "torch" else (IN, OUT, "torch")
    for name in {**IN, **OUT}:
        if getattr(args, name) is None:
            continue
        if name in other:
            raise PacxError(f"--{name} is for --to={to} alone: leave it away")
        if name in ("num_heads", "decoder_num_heads", "ln_eps"):
            if getattr(args, name) == 0:  # which stands for "not given" inside
                raise PacxError(f"--{name} 0: give a number above 0, or leave it away")
        if args.kind not in way[name]:
            raise PacxError(
                f"--{name} says nothing of --kind={args.kind}: it is for "
                f"{', '.join(way[name])}"
            )


def _refuse_unused(args, folder: model_folder.ModelFolder) -> None:
    """Refuses an option that speaks of a part which the file does not hold."""
    heads = folder.heads.architecture if folder.heads else {}
    for name, there, part in (
        ("decoder_num_heads", folder.heads and folder.heads.kind == "mae", "decoder"),
        ("alpha", heads.get("adapted"), "LoRA adapter"),
        ("labels", heads.get("labels"), "classifier"),
        ("task", heads.get("labels"), "classifier"),
    ):
        if getattr(args, name) is not None and not there:
            raise PacxError(f"--{name} is given, and {args.source} holds no {part}")


def _check_statistics(args, fields: dict, weights: pathlib.Path) -> None:
    """Refuses mean and std that pixels in [0, 1] cannot have."""
    for name in ("mean", "std"):
        value = fields.get(name, ())
        good = all(isinstance(x, (int, float)) and 0 <= x <= 1 for x in value)  # no NaN
        if not good or (name == "std" and 0 in value):
            where = f"--{name}"
            if not getattr(args, name):
                where = f"the config beside {weights} has {name}"
            raise PacxError(
                f"{where} {' '.join(map(str, value))}: give --{name} in [0, 1], of "
                "pixels divided by 255, and std above 0"
            )


def _options(args, weights: pathlib.Path) -> tuple[Options, dict]:
    """What files beside the weights and the command line tell; the latter wins.

    Returns:
      the options, and the sizes that the weights must have.
    """
    fields, sizes = beside.read(args.kind, weights)
    if args.preset == "reference":
        fields |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "mask_inputs": False}
    elif args.kind == "vit_hf" and not (args.mean and args.std):
        fields |= beside.images(weights)
    names = ("num_heads", "decoder_num_heads", "ln_eps", "alpha", "decimate", "task")
    fields |= {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    fields |= {k: tuple(getattr(args, k)) for k in ("mean", "std") if getattr(args, k)}
    _check_statistics(args, fields, weights)
    if args.labels is not None:
        fields["labels"] = _labels(args.labels)
    return Options(**fields), sizes


def _labels(text: str) -> tuple[str, ...]:
    """Names from a row of CSV; one that is empty or repeated names no output."""
    names = tuple(next(csv.reader([text]), []))
    if not names or not all(map(str.strip, names)) or len(set(names)) < len(names):
        raise PacxError(f"--labels {text!r}: give each output a name of its own")
    return names


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line, without the usage."""
        raise PacxError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog="pacx_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kind", required=True, choices=KINDS)
    add("--source", required=True, help="checkpoint; with --to=torch a folder or run")
    add("--target", required=True, help="folder to write; with --to=torch a file")
    add("--to", choices=("jax", "torch"), default="jax")
    add(
        "--preset",
        choices=("ours", "reference"),
        help="reference: as the authors' code: missing labs not zeroed (D7), ImageNet "
        "statistics for every backbone (D34)",
    )
    add("--num_heads", type=int, help="where the width does not tell")
    add("--decoder_num_heads", type=int)
    add("--ln_eps", type=float, help="default: the kind's published one")
    add("--alpha", type=float, help="of LoRA (pacx; default 16)")
    add("--mean", type=float, nargs=3, help="of red, green and blue, in [0, 1]")
    add("--std", type=float, nargs=3, help="of them, above 0, to 1")
    add("--decimate", type=int, help="of an ECG encoder (ecgfounder; default 1)")
    add("--labels", help="comma-separated names of a classifier's outputs")
    add("--task", choices=("multilabel", "multiclass"), help="of a classifier")
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
    check_options(args)
    (to_torch if args.to == "torch" else from_torch)(args)


if __name__ == "__main__":
    sys.exit(main())
