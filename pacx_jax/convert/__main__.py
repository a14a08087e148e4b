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
import json
import pathlib
import sys

import numpy as np

from pacx_jax import finished_run, model_folder
from pacx_jax.convert import files, kinds
from pacx_jax.convert.sizes import KINDS, Options
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD
from pacx_jax.types import PacxError

# Under what a PyTorch file of the kind holds its state dict.
CONTAINER = dict.fromkeys(KINDS, "state_dict") | {"vit_timm": "", "vit_hf": ""}

CARD = """# {title}

Converted by pacx_jax from a PyTorch checkpoint of kind `{kind}` ({name}), {count:,}
parameters. {left}

## Use
{use}

## Limits
For research. Not a medical device. What the checkpoint was trained on, its licence and
its limits are told by where it is from.
"""


USE = {
    "vit": 'pacx_jax.load_encoder("path/to/this/folder")(["image.png"]), or '
    "--config.model_init.",
    "ecg_net1d": "python -m pacx_jax.embed --encoder=DIR --ecgs=RECORDS, or "
    "--config.ecg_init.",
    "labs_dae": "--config.labs_init of Stage 2.",
}


def from_torch(args) -> None:
    """A checkpoint becomes a model folder."""
    target = pathlib.Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PacxError(f"{target} exists: give another --target, or delete it")
    found = files.read(args.source)
    options = _options(args)
    folder, left = kinds.read(args.kind, found, options, args.source)
    leaves = [v for k, v in found.items() if k not in left]
    count = sum(np.size(v) for v in leaves)
    card = CARD.format(
        title=f"pacx_jax {folder.kind}",
        kind=args.kind,
        name=pathlib.Path(args.source).name,
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
    )


def to_torch(args) -> None:
    """A model folder, or a run with all it trained, becomes a checkpoint."""
    folder = open_source(args.source)
    state = kinds.write(args.kind, folder, args.merged)
    container = CONTAINER[args.kind] if args.container is None else args.container
    if args.kind == "mae" and container != "state_dict":  # the original repository's
        state = {k.removeprefix("model."): v for k, v in state.items()}
    files.write(args.target, state, container)
    count = sum(np.size(v) for v in state.values())
    flags = kinds.lost(args.kind, folder, args.merged)
    back = f"; on the way back give {' '.join(flags)}" if flags else ""
    print(f"{args.kind}: {len(state)} tensors, {count:,} values -> {args.target}{back}")


def open_source(path: str) -> model_folder.ModelFolder:
    """The model folder at `path`; of a run's workdir with the heads that it trained."""
    if (pathlib.Path(path) / "done.json").is_file():
        return finished_run.read_run(finished_run.read_config(path), path, heads=True)
    return model_folder.load(path)


def _options(args) -> Options:
    fields = {
        "num_heads": args.num_heads,
        "decoder_num_heads": args.decoder_num_heads,
        "ln_eps": args.ln_eps,
        "alpha": args.alpha,
        "labels": tuple(x for x in args.labels.split(",") if x),
        "mask_inputs": args.preset != "reference",
        "decimate": args.decimate,
    }
    if args.preset == "reference":
        fields |= {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    source = pathlib.Path(args.source)
    if args.kind == "vit_hf" and source.is_dir():
        fields = _hugging_face(source) | {k: v for k, v in fields.items() if v}
    for name in ("mean", "std"):
        if getattr(args, name):
            fields[name] = tuple(getattr(args, name))
    return Options(**fields)


def _hugging_face(folder: pathlib.Path) -> dict:
    """What the configs beside the weights tell."""
    fields = {}
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        fields["num_heads"] = int(config["num_attention_heads"])
        fields["decoder_num_heads"] = int(config.get("decoder_num_attention_heads", 0))
        fields["ln_eps"] = float(config["layer_norm_eps"])
        if config.get("hidden_act", "gelu") != "gelu":
            raise PacxError(f"{folder}/config.json: hidden_act is not gelu")
        file = folder / "preprocessor_config.json"
        if file.is_file():
            images = json.loads(file.read_text("utf-8"))
            fields["mean"] = tuple(images["image_mean"])
            fields["std"] = tuple(images["image_std"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PacxError(f"{folder}: its config is missing or damaged: {e}") from None
    return fields


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="pacx_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kind", required=True, choices=KINDS)
    add("--source", required=True, help="checkpoint; with --to=torch a folder or run")
    add("--target", required=True, help="folder to write; with --to=torch a file")
    add("--to", choices=("jax", "torch"), default="jax")
    add(
        "--preset",
        choices=("ours", "reference"),
        default="ours",
        help="reference: as the authors' code: missing labs not zeroed (D7), ImageNet "
        "statistics for every backbone (D34)",
    )
    add("--num_heads", type=int, default=0, help="where the width does not tell")
    add("--decoder_num_heads", type=int, default=0)
    add("--ln_eps", type=float, default=0.0, help="default: the kind's published one")
    add("--alpha", type=float, default=16.0, help="of LoRA (pacx; default 16)")
    add("--mean", type=float, nargs=3, help="of the images' channels, in [0, 1]")
    add("--std", type=float, nargs=3)
    add("--decimate", type=int, default=1, help="of an ECG encoder (ecgfounder)")
    add("--labels", default="", help="comma-separated names of a head's outputs")
    add("--merged", action="store_true", help="--to=torch of pacx: without adapters")
    add(
        "--container",
        choices=("state_dict", "model", ""),
        help="--to=torch: the key under which the file holds the state dict",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        (to_torch if args.to == "torch" else from_torch)(args)
    except (PacxError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
