"""Teachers: frozen embeddings of a modality, from an encoder or a table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from pacx_jax import modalities
from pacx_jax.encoders import kinds, model_folder
from pacx_jax.errors import PacxError
from pacx_jax.modalities import table
from pacx_jax.stores import staging
from pacx_jax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen encoder of a modality.

    Attributes:
      name: the modality's name.
      folder: its encoder.
      reader: makes an example's encoder inputs; studies may lack them.
    """

    name: str
    folder: model_folder.ModelFolder
    reader: modalities.Reader

    @property
    def width(self) -> int:
        """Length of an embedding."""
        return self.folder.width

    def embed(self, params: Params, batch: Mapping[str, Array] | Batch) -> Array:
        """Embeds a batch with the reader's arrays: (b, width)."""
        inputs = [batch[name] for name in self.reader.module.ARRAYS]
        wanted = kinds.of(self.folder.kind).inputs(self.folder.architecture)
        for name, given, want in zip(
            self.reader.module.ARRAYS, inputs, wanted, strict=True
        ):
            if given.shape[-1] != want.shape[-1]:
                raise PacxError(
                    f"config.modalities.{self.name}.init is an encoder of "
                    f"{want.shape[-1]} values, but {name} of the data has "
                    f"{given.shape[-1]}: is it another modality's encoder?"
                )
        return self.folder.module().apply({"params": params}, *inputs)


Teacher = Encoder | table.Table


def load(name: str, chosen: Mapping) -> Teacher:
    """The teacher that `config.modalities.<name>` chooses.

    Args:
      chosen: `init`, a model folder, a workdir or an .npz; `by`, for a table; `module`,
        for a modality outside the library.

    Raises:
      PacxError: `init` is empty, or none of these.
    """
    init = chosen.get("init", "")
    if not init:
        what = "an .npz of embeddings"
        if name in modalities.NAMES:
            kind = modalities.get(name).KIND
            what = f"the folder of an encoder of kind {kind} (or a workdir), or {what}"
        raise PacxError(
            f"config.modalities.{name}.init is empty: give {what}; or set its "
            "clip_weight and regression_weight to 0 to leave it out"
        )
    if pathlib.Path(init).suffix == ".npz":
        return table.load(name, staging.local(init), chosen.get("by", "patient"))
    if pathlib.Path(init).is_file():
        raise PacxError(
            f"config.modalities.{name}.init {init!r}: a file; give a model folder, a "
            "workdir, or an .npz of id (n,) and embedding (n, d)"
        )
    module = modalities.get(name, chosen.get("module", ""))
    return encoder(name, model_folder.load(init, module.KIND), module)


def encoder(name: str, folder: model_folder.ModelFolder, module=None) -> Encoder:
    """Makes a teacher from a loaded encoder."""
    module = module or modalities.get(name)
    reader = modalities.Reader(name, module, folder.preprocessing, optional=True)
    return Encoder(name, folder, reader)
