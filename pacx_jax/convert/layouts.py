"""How a model folder is laid out as a checkpoint of a published kind.

A `Spec` says which kind, sizes and heads; `table` makes its table of keys. `of_folder`
gives the spec of a model folder, `sizes.infer` that of a state dict.
"""

from __future__ import annotations

import dataclasses

from pacx_jax.convert import tables
from pacx_jax.convert.state import Entry
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError

# What stands before the encoder's keys, by kind. The first is the published layout.
PREFIXES = {
    "mae": ("model.", "", "module."),
    "vit_timm": ("", "module."),
    "vit_hf": ("", "vit."),
    "pacx": ("cxr_encoder.base_model.model.", "cxr_encoder.", "base_model.model.", ""),
    "labs_dae": ("model.", ""),
    "ecgfounder": ("", "module."),
    "probe": ("model.backbone.", "backbone."),
    "segment": ("model.backbone.", "backbone."),
}
KINDS = tuple(PREFIXES)
MODELS = {"labs_dae": "labs_dae", "ecgfounder": "ecg_net1d"}  # "vit" for the others


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a model is laid out in a state dict.

    Attributes:
      kind: of the checkpoint, one of `KINDS`.
      model, architecture: of the model folder.
      heads, heads_architecture: what stands beside the encoder, "" for nothing.
      prefix: before the encoder's keys.
      names: the layout of a ViT.
    """

    kind: str
    model: str
    architecture: dict
    heads: str = ""
    heads_architecture: dict = dataclasses.field(default_factory=dict)
    prefix: str = ""
    names: tables.Names = tables.TIMM


def table(spec: Spec) -> list[Entry]:
    """The table of a spec."""
    a, h, prefix = spec.architecture, spec.heads_architecture, spec.prefix
    if spec.model == "labs_dae":
        return tables.labs_dae(prefix)
    if spec.model == "ecg_net1d":
        return tables.net1d(a, len(h["labels"]), prefix)
    entries = tables.vit(a, spec.names, prefix)
    if spec.heads == "mae":
        root = prefix.removesuffix("vit.") if spec.kind == "vit_hf" else prefix
        side = a["image_size"] // a["patch_size"]
        entries += tables.mae_decoder(h, side, spec.names, root)
    elif spec.heads == "pacx":
        entries = tables.adapt(entries, h.get("adapted", ())) + tables.pacx_heads(h)
    elif spec.heads == "classify":
        key = head_root(spec.kind, prefix) + spec.names.head
        entries += tables.layer("head.linear", key)
    elif spec.heads == "segment":
        entries += tables.segmentation(h, f"{head_root(spec.kind, prefix)}decoder.")
    return entries


def head_root(kind: str, prefix: str) -> str:
    """What stands before a head's keys, where `prefix` is before the encoder's."""
    return "" if kind == "vit_hf" else prefix.removesuffix("backbone.")


def of_folder(kind: str, folder: ModelFolder, merged: bool = False) -> Spec:
    """How `folder` is laid out as a checkpoint of `kind`, as it was published.

    Args:
      merged: of an adapted encoder, the merged weights without adapters.

    Raises:
      PacxError: a folder that is not, or has not, what the kind holds.
    """
    model = MODELS.get(kind, "vit")
    if folder.kind != model:
        raise PacxError(f"a {folder.kind} model cannot be written as {kind}")
    fits = {
        "mae": ("mae",),
        "vit_timm": ("classify",),
        "vit_hf": ("mae", "classify"),
        "pacx": ("pacx",),
        "labs_dae": ("labs_dae",),
        "ecgfounder": ("ecg",),
        "probe": ("classify",),
        "segment": ("segment",),
    }[kind]
    heads = folder.heads.kind if folder.heads else ""
    if kind in ("labs_dae", "probe", "segment") and heads not in fits:
        raise PacxError(
            f"{kind} needs {fits[0]} heads, and this folder has {heads or 'none'}: "
            "give the run's workdir, or a folder written by export --heads"
        )
    heads = heads if heads in fits else ""  # others have no place in this kind
    architecture = dict(folder.heads.architecture) if heads else {}
    if merged:
        architecture.pop("adapted", None)
    if kind == "ecgfounder" and not heads:
        architecture = {"labels": []}
    prefix = PREFIXES[kind][0]
    if kind == "vit_hf" and heads:
        prefix = "vit."
    if kind == "pacx" and not architecture.get("adapted"):
        prefix = "cxr_encoder."
    names = tables.HF if kind == "vit_hf" else tables.TIMM
    return Spec(kind, model, folder.architecture, heads, architecture, prefix, names)
