"""What the JSON files beside a checkpoint tell of it: Hugging Face's and timm's."""

from __future__ import annotations

import math
import pathlib

from pacx_jax import files
from pacx_jax.errors import PacxError

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
TASKS = {
    None: "multiclass",
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
}


def read(kind: str, weights: pathlib.Path) -> tuple[dict, dict]:
    """Fields of `sizes.Options`, and sizes that the weights must have.

    Args:
      kind: of the checkpoint; kinds other than vit_hf and vit_timm have no such files.
      weights: the file, beside which config.json may lie.

    Raises:
      PacxError: a file that is damaged, another kind's, or says what we cannot do.
    """
    file = weights.parent / CONFIG
    if kind not in ("vit_hf", "vit_timm") or not file.is_file():
        return {}, {}
    config = _json(file)
    try:
        if kind == "vit_timm":
            return _timm(config, file)
        return _hugging_face(config, file)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise PacxError(
            f"{file} is not {kind}'s, or damaged ({type(e).__name__}: {e}): put beside "
            "the weights the config that they came with, or none"
        ) from None


def images(weights: pathlib.Path) -> dict:
    """Mean and std, as preprocessor_config.json has them; empty without that file.

    Raises:
      PacxError: pixels that are not divided by 255, or statistics that are not three.
    """
    file = weights.parent / IMAGES
    if not file.is_file():
        return {}
    about = _json(file)
    factor = about.get("rescale_factor", 1 / 255)
    good = isinstance(factor, (int, float)) and math.isclose(factor, 1 / 255)
    if not about.get("do_rescale", True) or not good:
        raise PacxError(
            f"{file}: do_rescale is {about.get('do_rescale', True)} and rescale_factor "
            f"{factor}: an encoder here takes (x / 255 - mean) / std. Give --mean and "
            "--std of that form"
        )
    if not about.get("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    found = {}
    for name in ("mean", "std"):
        value = about.get(f"image_{name}")
        if isinstance(value, (int, float)):  # of all channels
            value = [value] * 3
        if not isinstance(value, list) or len(value) != 3:
            raise PacxError(
                f"{file}: image_{name} is {value}, and three numbers are needed: give "
                "--mean and --std"
            )
        found[name] = tuple(value)
    return found


def _hugging_face(config: dict, file: pathlib.Path) -> tuple[dict, dict]:
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise PacxError(f"{file}: hidden_act is {activation}; an encoder here has gelu")
    fields = {
        "num_heads": int(config["num_attention_heads"]),
        "decoder_num_heads": int(config.get("decoder_num_attention_heads", 0)),
        "ln_eps": float(config.get("layer_norm_eps", 1e-12)),  # transformers' default
    }
    names = config.get("id2label") or {}
    fields["labels"] = tuple(names[str(i)] for i in range(len(names)))
    kind = config.get("problem_type")
    fields["task"] = TASKS.get(kind, str(kind))
    sizes = {
        "image_size": config.get("image_size"),
        "patch_size": config.get("patch_size"),
        "width": config.get("hidden_size"),
        "depth": config.get("num_hidden_layers"),
    }
    return fields, {k: v for k, v in sizes.items() if v is not None}


def _timm(config: dict, file: pathlib.Path) -> tuple[dict, dict]:
    about, given = config["pretrained_cfg"], config.get("model_args") or {}
    # What the keys do not show, and an encoder here does in one way alone.
    pool = given.get("global_pool", config.get("global_pool", "token"))
    activation = given.get("act_layer", "gelu")
    if pool not in ("token", "") or activation != "gelu":
        raise PacxError(
            f"{file}: global_pool is {pool!r} and act_layer {activation!r}; an encoder "
            "here gives its CLS token ('token') and has gelu"
        )
    fields = {name: tuple(about[name]) for name in ("mean", "std")}
    if heads := given.get("num_heads"):
        fields["num_heads"] = int(heads)
    sizes = {
        "width": config.get("num_features"),
        "depth": given.get("depth"),
        "patch_size": given.get("patch_size"),
    }
    return fields, {k: v for k, v in sizes.items() if v is not None}


def _json(file: pathlib.Path) -> dict:
    try:
        return files.read_json(file)
    except (OSError, ValueError) as e:
        raise PacxError(f"{file} cannot be read: {e}") from None
