"""What the JSON files beside a checkpoint tell of it: Hugging Face's and timm's."""

from __future__ import annotations

import math
import pathlib

from pacx_jax import files
from pacx_jax.errors import PacxError

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
REMEDY = "put beside the weights the file that they came with, or none"
TASKS = {
    None: "multiclass",
    "single_label_classification": "multiclass",
    "multi_label_classification": "multilabel",
}


def read(kind: str, weights: pathlib.Path) -> tuple[dict, dict]:
    """Fields of `sizes.Options`, and sizes that the weights must have.

    Args:
      kind: of the checkpoint; those of neither timm nor transformers have none.
      weights: the file, beside which config.json may lie.

    Raises:
      PacxError: a file that is damaged, another kind's, or says what we cannot do.
    """
    file = weights.parent / CONFIG
    parse = {
        "vit_hf": _hugging_face,
        "vit_timm": _timm,
        "dinov2": _timm,
        "dinov2_hf": _dinov2_hf,
        "eva02": _timm_eva,
        "densenet": _timm_densenet,
    }.get(kind)
    if not parse or not file.is_file():
        return {}, {}
    config = files.read_own_json(file, REMEDY)
    try:
        fields, sizes = parse(config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise PacxError(
            f"{file} is not {kind}'s, or damaged ({type(e).__name__}: {e}): {REMEDY}"
        ) from None
    except PacxError as e:
        raise PacxError(f"{file}: {e}") from None
    return fields, {k: v for k, v in sizes.items() if v is not None}


def images(weights: pathlib.Path) -> dict:
    """Mean and std, as preprocessor_config.json has them; empty without that file.

    Raises:
      PacxError: pixels that are not divided by 255, or statistics that are not three.
    """
    file = weights.parent / IMAGES
    if not file.is_file():
        return {}
    about = files.read_own_json(file, REMEDY)
    factor, divides = (
        about.get("rescale_factor", 1 / 255),
        about.get("do_rescale", True),
    )
    good = isinstance(factor, (int, float)) and math.isclose(factor, 1 / 255)
    if not divides or not good:
        raise PacxError(
            f"{file}: do_rescale is {divides} and rescale_factor {factor}: an encoder "
            "here takes (x / 255 - mean) / std. Give --mean and --std of that form"
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
                f"--{name}"
            )
        found[name] = tuple(value)
    return found


def _hugging_face(config: dict) -> tuple[dict, dict]:
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise PacxError(f"hidden_act is {activation}; an encoder here has gelu")
    names, decoder = config.get("id2label") or {}, "decoder_num_attention_heads"
    kind = config.get("problem_type")
    fields = {
        "num_heads": int(config["num_attention_heads"]),
        "decoder_num_heads": int(config[decoder]) if decoder in config else None,
        "ln_eps": float(config.get("layer_norm_eps", 1e-12)),  # transformers' default
        "labels": tuple(names[str(i)] for i in range(len(names))),
        "task": TASKS.get(kind, str(kind)),
    }
    return fields, {
        "image_size": config.get("image_size"),
        "patch_size": config.get("patch_size"),
        "width": config.get("hidden_size"),
        "depth": config.get("num_hidden_layers"),
    }


def _dinov2_hf(config: dict) -> tuple[dict, dict]:
    kind, registers = config["model_type"], 0
    if kind not in ("dinov2", "dinov2_with_registers"):
        raise PacxError(f"model_type is {kind}, and dinov2's is needed")
    if kind == "dinov2_with_registers":
        registers = config.get("num_register_tokens", 4)
    config = {"layer_norm_eps": 1e-6} | config  # Dinov2Config's default
    fields, sizes = _hugging_face(config)
    fields = {k: fields[k] for k in ("num_heads", "ln_eps")}
    return fields, sizes | {"registers": registers}


def _timm_eva(config: dict) -> tuple[dict, dict]:
    pools = {"avg": "mean", "token": "cls"}
    given = dict(config.get("model_args") or {})
    pool = given.pop("global_pool", config.get("global_pool", "avg"))
    if pool not in pools:
        raise PacxError(f"global_pool is {pool!r}: 'avg' or 'token' is needed")
    fields, sizes = _timm(config | {"global_pool": "token", "model_args": given})
    return fields | {"pool": pools[pool]}, sizes


def _timm_densenet(config: dict) -> tuple[dict, dict]:
    about, given = config["pretrained_cfg"], config.get("model_args") or {}
    # What the keys do not show.
    given = {"global_pool": config.get("global_pool", "avg")} | given
    usual = {"global_pool": "avg", "act_layer": "relu", "norm_layer": "batchnorm2d"}
    usual["aa_layer"] = None
    odd = [f"{k} is {given[k]!r}" for k in usual if given.get(k, usual[k]) != usual[k]]
    if odd:
        raise PacxError(
            f"{'; '.join(odd)}; a DenseNet here has ReLU, plain batch norms, and the "
            "mean of the last map ('avg')"
        )
    return {name: tuple(about[name]) for name in ("mean", "std")}, {}


def _timm(config: dict) -> tuple[dict, dict]:
    about, given = config["pretrained_cfg"], config.get("model_args") or {}
    # What the keys do not show, and an encoder here does in one way alone.
    pool = given.get("global_pool", config.get("global_pool", "token"))
    activation = given.get("act_layer", "gelu")
    if pool not in ("token", "") or activation != "gelu":
        raise PacxError(
            f"global_pool is {pool!r} and act_layer {activation!r}; an encoder here "
            "gives its CLS token ('token') and has gelu"
        )
    fields = {name: tuple(about[name]) for name in ("mean", "std")}
    if heads := given.get("num_heads"):
        fields["num_heads"] = int(heads)
    return fields, {
        "width": config.get("num_features"),
        "depth": given.get("depth"),
        "patch_size": given.get("patch_size"),
    }
