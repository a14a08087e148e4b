"""The kinds of published checkpoints, one entry each, and how a model is laid out.

A `Spec` says which kind, sizes and heads; `table` makes its table of keys. `of_folder`
gives the spec of a model folder, `sizes.infer` that of a state dict.
"""

from __future__ import annotations

import dataclasses

from pacx_jax.convert import densenet, foreign, tables
from pacx_jax.convert.state import Entry
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of checkpoint, as its authors publish it.

    Attributes:
      prefix: before the encoder's keys; a file may have any other.
      anchor: the key, after the prefix, by which an encoder is found.
      heads: kinds of heads that it can hold beside the encoder.
      needs_heads: whether it always holds them.
      model: the kind of model folder.
      container: under what a PyTorch file holds the state dict.
      ln_eps: LayerNorm's epsilon: transformers' default; D6.
      final_ln_eps: that of the last one, 0 for the same.
    """

    prefix: str = ""
    anchor: str = f"{tables.TIMM.patch}.weight"
    heads: tuple[str, ...] = ()
    needs_heads: bool = False
    model: str = "vit"
    container: str = "state_dict"
    ln_eps: float = 1e-6
    final_ln_eps: float = 0.0


KINDS = {
    "mae": Kind("model.", heads=("mae",)),
    # Blocks have an epsilon of their own, the last LayerNorms PyTorch's.
    "mvmae": Kind(
        "encoders.vision.",
        anchor=f"{tables.MVMAE.patch}.weight",
        heads=("mae",),
        final_ln_eps=1e-5,
    ),
    "vit_timm": Kind(heads=("classify",), container=""),
    "vit_hf": Kind(
        anchor=f"{tables.HF.patch}.weight",
        heads=("mae", "classify"),
        container="",
        ln_eps=1e-12,
    ),
    "dinov2": Kind(heads=("classify",), container=""),
    "dinov2_hf": Kind(anchor=f"{foreign.HF.patch}.weight", container=""),
    "eva02": Kind(heads=("classify",), container=""),
    "densenet": Kind(anchor=densenet.ANCHOR, model="densenet", container=""),
    "densenet_xrv": Kind(anchor=densenet.ANCHOR, model="densenet", container=""),
    "pacx": Kind("cxr_encoder.base_model.model.", heads=("pacx",), ln_eps=1e-5),
    "labs_dae": Kind("model.", "encoder.0.weight", ("labs_dae",), True, "labs_dae"),
    "ecgfounder": Kind(
        anchor="first_conv.conv.weight", heads=("ecg",), model="ecg_net1d"
    ),
    "probe": Kind("model.backbone.", heads=("classify",), needs_heads=True),
    "segment": Kind("model.backbone.", heads=("segment",), needs_heads=True),
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """How a model is laid out in a state dict.

    Attributes:
      kind: of the checkpoint, one of `KINDS`.
      architecture: of the model folder.
      heads, heads_architecture: what stands beside the encoder, "" for nothing.
      prefix: before the encoder's keys.
      names: the layout of a ViT.
    """

    kind: str
    architecture: dict
    heads: str = ""
    heads_architecture: dict = dataclasses.field(default_factory=dict)
    prefix: str = ""
    names: tables.Names = tables.TIMM

    @property
    def model(self) -> str:
        """The kind of model folder."""
        return KINDS[self.kind].model


def table(spec: Spec) -> list[Entry]:
    """The table of a spec."""
    a, h, prefix = spec.architecture, spec.heads_architecture, spec.prefix
    if spec.model == "labs_dae":
        return tables.labs_dae(prefix)
    if spec.model == "ecg_net1d":
        return tables.net1d(a, len(h["labels"]), prefix)
    if spec.model == "densenet":
        return densenet.table(a, prefix)
    root = root_of(spec.kind, prefix)
    if spec.kind == "mvmae":
        decoder = tables.mvmae_decoder(h, root) if spec.heads else []
        return tables.mvmae(a, prefix) + decoder
    entries = tables.vit(a, spec.names, prefix)
    if spec.heads == "mae":
        side = a["image_size"] // a["patch_size"]
        entries += tables.mae_decoder(h, side, spec.names, root)
    elif spec.heads == "pacx":
        entries = tables.adapt(entries, h.get("adapted", ())) + tables.pacx_heads(h)
    elif spec.heads == "classify":
        entries += tables.layer("head.linear", root + spec.names.head)
    elif spec.heads == "segment":
        entries += tables.segmentation(h, f"{root}decoder.")
    return entries


def root_of(kind: str, prefix: str) -> str:
    """What stands before the heads' keys, where `prefix` is before the encoder's."""
    wrappers = {"mae": "", "vit_hf": "vit.", "mvmae": "encoders.vision."}
    wrapper = wrappers.get(kind, "backbone.")
    return prefix.removesuffix(wrapper)


def of_folder(kind: str, folder: ModelFolder, merged: bool = False) -> Spec:
    """How `folder` is laid out as a checkpoint of `kind`, as it was published.

    Args:
      merged: of an adapted encoder, the merged weights without adapters.

    Raises:
      PacxError: a folder that is not, or has not, what the kind holds.
    """
    about = KINDS[kind]
    if folder.kind != about.model:
        raise PacxError(f"a {folder.kind} model cannot be written as {kind}")
    heads = folder.heads.kind if folder.heads else ""
    if about.needs_heads and heads not in about.heads:
        raise PacxError(
            f"{kind} needs {about.heads[0]} heads, and this folder has "
            f"{heads or 'none'}: give the run's workdir, or a folder written by export "
            "--heads"
        )
    heads = heads if heads in about.heads else ""  # others have no place in this kind
    h = dict(folder.heads.architecture) if heads else {}
    if about.model == "vit":
        _refuse_foreign(kind, folder.architecture, h)
    elif about.model == "densenet":
        densenet.check(kind, folder.architecture)
    if merged:
        h.pop("adapted", None)
    if kind == "ecgfounder" and not heads:
        h = {"labels": []}
    prefix = about.prefix
    if kind == "vit_hf" and heads:
        prefix = "vit."
    if kind == "pacx" and not h.get("adapted"):
        prefix = "cxr_encoder."
    names = {"vit_hf": tables.HF, "mvmae": tables.MVMAE}.get(kind, tables.TIMM)
    if kind in foreign.KINDS:
        names = foreign.written(kind, folder.architecture)
    return Spec(kind, folder.architecture, heads, h, prefix, names)


# Fields of an architecture -> the value without which a kind has no place for them.
_OURS = {"channels": 3, "qk_norm": False, "views": 0, "posemb_cls": True}
_OURS |= {"project": True} | foreign.PLAIN


def _refuse_foreign(kind: str, a: dict, h: dict) -> None:
    """Refuses an encoder, or a decoder, whose parts a kind has no keys for."""
    wrong = []
    if kind in foreign.KINDS:
        wrong = foreign.lacks(kind, a)
    elif kind == "mvmae":
        if a.get("channels", 3) != 1:
            wrong.append("its images have 3 channels, not 1")
        if not a.get("posemb_grid") or a.get("posemb_cls", True):
            wrong.append("its positions are not learned ones without CLS's")
        if h and not h.get("posemb_grid"):
            wrong.append("its decoder's positions are not learned")
        if h and h.get("project", True):
            wrong.append("its decoder projects the encoder's tokens")
        wrong += foreign.parts(a)
    else:
        for part, fields in (("it", a), ("its decoder", h)):
            wrong += [f"{part} has {k} {fields[k]}" for k, usual in _OURS.items()
                      if fields.get(k, usual) != usual]  # fmt: skip
        if h.get("posemb_grid"):
            wrong.append("its decoder has learned positions")
    if wrong:
        other = "" if kind == "mvmae" else "; --kind=mvmae holds MVMAE's"
        if foreign.parts(a):
            other = "; --kind=dinov2, dinov2_hf or eva02 may hold it"
        raise PacxError(
            f"this model cannot be written as {kind}: {'; '.join(wrong)}{other}"
        )
