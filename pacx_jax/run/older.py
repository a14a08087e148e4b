"""Configs of older workdirs, brought to today's fields."""

from __future__ import annotations

from typing import Any

from pacx_jax import modalities

_ONCE = ("ecg", "labs")  # the modalities that there were


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config.json as today's recipes would have written it.

    Until 2026-11-29 `ecg_init`, `labs_init` and `loss.modalities` chose what Stage 2
    distils, and `data.transform` could name an ECG's or labs' stage.
    """
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    if "objective" in config:
        config.setdefault("license", "")
    data = config.get("data", {})
    if isinstance(data, dict) and data.get("transform") in _ONCE:
        data["transform"] = ""
    if isinstance(data, dict) and "label_columns" in data:
        data.setdefault("label_count", 0)
        data.setdefault("subset_list", "")
        data.setdefault("label_separator", "|")
        data.setdefault("weights", "size")
        data.setdefault("group", "image")
        data.setdefault("max_views", 3)
        data.setdefault("channels", 3)
    if isinstance(data, dict) and "shuffle_pairs" in data:
        data.setdefault("shuffle_within", [])
        data.setdefault("shuffle_table", "")
    optim = config.get("optim", {})
    if isinstance(optim, dict) and "warmup_from_zero" in optim:
        optim.setdefault("warmup_start", 0.0)
        optim.setdefault("layer_decay", 1.0)
    if config.get("objective") == "labs_dae":
        config.setdefault("modality", _ONCE[1])
    if config.get("objective") == "classify":
        config.setdefault("drop_path", 0.0)
        config.setdefault("mixup", 0.0)
    loss = config.get("loss", {})
    if "modalities" in config or not isinstance(loss, dict) or "modalities" not in loss:
        return config
    on = loss.pop("modalities")
    inits = {name: config.pop(f"{name}_init", "") for name in _ONCE}
    config["modalities"] = {
        name: choice(inits.get(name, ""), float(name in on))
        for name in (*modalities.NAMES, "teacher")
    }
    return config


def choice(init: str, weight: float) -> dict[str, Any]:
    """One entry of `config.modalities`."""
    return {
        "init": init,
        "clip_weight": weight,
        "regression_weight": weight,
        "by": "patient",
        "module": "",
    }
