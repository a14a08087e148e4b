"""A trained ECG encoder as a function: preprocessed windows in, embeddings out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward, model_folder
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import ecg

if TYPE_CHECKING:
    from jaxtyping import Float32, Real

_WANTED = f"give windows of ecg.windows, each ({ecg.WINDOW}, {len(ecg.LEADS)}) numbers"


class EcgEncoder:
    """Callable: windows as from `ecg.windows` -> (n, width) float32.

    Rows are padded and split over the devices as `encoder.Encoder` says.

    Args:
      folder: an "ecg_net1d", as read by `model_folder.load`.
      batch_size: most windows a step of all devices, rounded up to a multiple of them.
      dtype: of the convolutions.
    """

    def __init__(
        self,
        folder: model_folder.ModelFolder,
        batch_size: int = 32,
        dtype: str = "float32",
    ):
        self.width = folder.width
        self.mesh = sharding.make_mesh()
        self.batch_size = sharding.padded_size(batch_size, self.mesh)
        self._decimate = folder.preprocessing.get("decimate", 1)
        rate = folder.preprocessing.get("sampling_rate", ecg.FS)
        if rate != ecg.FS:
            raise PacxError(
                f"the encoder's sampling_rate is {rate!r} Hz; the ECG chain gives "
                f"{ecg.FS} Hz"
            )
        everywhere = sharding.replicated(self.mesh)
        self._params = jax.device_put(folder.params, everywhere)
        self._forward = forward.arrays(folder.module(dtype), self.mesh)

    def __call__(
        self, windows: Iterable[Real[np.ndarray, "5000 12"]]
    ) -> Float32[np.ndarray, "n width"]:
        """Embeds windows (5000, 12), an array of them or any iterable.

        Raises:
          PacxError: anything else, such as a record of another length.
        """
        if not isinstance(windows, Iterable):
            raise PacxError(f"{type(windows).__name__}: {_WANTED}")
        return forward.in_batches(
            self._forward,
            self._params,
            (ecg.decimate(_checked(window), self._decimate) for window in windows),
            (self.width,),
            self.batch_size,
            self.mesh,
        )


def _checked(window) -> np.ndarray:
    """The window as float32; PacxError if it is none."""
    try:
        window = np.asarray(window, np.float32)
    except (TypeError, ValueError) as error:
        raise PacxError(f"no ECG ({one_line(error)}): {_WANTED}") from None
    if window.shape != (ecg.WINDOW, len(ecg.LEADS)):
        raise PacxError(f"ECG of shape {window.shape}: {_WANTED}")
    return window


def load_ecg_encoder(
    path: str | os.PathLike, batch_size: int = 32, dtype: str = "float32"
) -> EcgEncoder:
    """Opens an exported ECG encoder (or a finished run's workdir).

    Example:
      encoder = load_ecg_encoder("runs/demo/ecg")
      record = ecg_records.read_wfdb(pathlib.Path("A0001.hea"))
      windows, starts = ecg.windows(record.ecg, record.fs)
      z = encoder(windows)   # (1, width) float32

    Raises:
      PacxError: no such folder, or weights that do not fit its description.
    """
    return EcgEncoder(model_folder.load(path, "ecg_net1d"), batch_size, dtype)
