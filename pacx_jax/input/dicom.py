"""Reads DICOM X-rays as uint8 grey levels, by the grey pipeline of PS3.3.

1. Stored value: the low BitsStored bits; two's complement if PixelRepresentation is 1.
2. Modality (C.11.1): ModalityLUTSequence, else RescaleSlope and RescaleIntercept.
3. VOI (C.11.2): the first item of VOILUTSequence, else the first WindowCenter and
   WindowWidth by VOILUTFunction, onto 0 to 255. Without either the smallest value
   becomes 0 and the largest 255, as MIMIC-CXR-JPG was made, padding left out.
4. Turned over, once, if MONOCHROME1 or PresentationLUTShape INVERSE.
5. Rounded; pixels of PixelPaddingValue (to PixelPaddingRangeLimit) are 0, black.

A grey level depends on the stored value alone, so this is one table of at most 65,536
entries. Overlays, orientation and presentation states are not applied.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError, install, one_line
from pacx_jax.input import dicom_pixels
from pacx_jax.input.dicom_pixels import value

_HEADER = 2**18  # bytes, in which the elements before the pixels stand


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of a DICOM file, which errors call `name`, to uint8 (h, w).

    Raises:
      PacxError: not one grey image of 8 to 16 bits, damaged, or no extra `dicom`.
    """
    try:
        dataset, stored, values = dicom_pixels.read(bytes(data))
        with np.errstate(all="ignore"):  # overflow is refused below
            return _grey_table(dataset, stored, values)[stored]
    except ImportError as error:
        raise PacxError(
            f"{name}: a DICOM file, which needs the extra dicom ({error}): "
            f"{install('dicom')}"
        ) from error
    except Exception as error:  # hostile bytes make the packages raise almost anything
        reason = f"DICOM {one_line(error)}; mend, convert or delete it"
        raise PacxError(f"{name}: {reason}") from error


def view(path: str | os.PathLike) -> str:
    """ViewPosition of a DICOM file; "" for other files, and where it has none.

    PacxError without the extra `dicom`. What is damaged is found when it is decoded.
    """
    if not dicom_pixels.is_dicom(files.read_bytes(path, 256)):
        return ""
    try:
        return dicom_pixels.text(files.read_bytes(path, _HEADER), "ViewPosition")
    except ImportError as error:
        raise PacxError(
            f"{path}: a DICOM file, which needs the extra dicom ({error}): "
            f"{install('dicom')}"
        ) from error
    except Exception:  # hostile bytes make pydicom raise almost anything
        return ""


def _grey_table(dataset: Any, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 (2^BitsStored,): the grey level of each stored value."""
    padding = np.zeros(len(values), bool)
    if (one := value(dataset, "PixelPaddingValue", int, -1)) >= 0:  # C.7.5.1.1.2
        ends = [one, value(dataset, "PixelPaddingRangeLimit", int, one)]
        if values.min() < 0:
            ends = [end - 2**16 if end >= 2**15 else end for end in ends]
        padding = (values >= min(ends)) & (values <= max(ends))
    if items := dataset.get("ModalityLUTSequence"):
        values, _ = _look_up(items[0], values)
    else:
        slope = value(dataset, "RescaleSlope", float, 1)
        if slope == 0:
            raise ValueError("RescaleSlope 0 makes all values one")
        values = values * slope + value(dataset, "RescaleIntercept", float, 0)
    grey = _voi(dataset, values)
    seen = np.zeros(len(values), bool)
    seen[stored] = True
    inside = values[seen & ~padding]
    if grey is None:
        low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
        grey = np.clip((values - low) / max(high - low, 1e-30), 0, 1)
    if np.isnan(grey).any():
        raise ValueError("rescale, window or table gives values that are no numbers")
    if inside.size > 1 and np.ptp(grey[seen & ~padding]) == 0:
        raise ValueError(
            f"values {inside.min():g} to {inside.max():g} are one grey level by the "
            "window or table (WindowCenter, VOILUTSequence)"
        )
    shape = value(dataset, "PresentationLUTShape", str, "IDENTITY")
    if shape not in ("IDENTITY", "INVERSE"):
        raise ValueError(f"PresentationLUTShape {shape!r}: not IDENTITY or INVERSE")
    photometric = value(dataset, "PhotometricInterpretation", str)
    if shape == "INVERSE" or photometric == "MONOCHROME1":
        grey = 1 - grey
    return np.where(padding, 0, np.rint(255 * grey)).astype(np.uint8)


def _voi(dataset: Any, values: np.ndarray) -> np.ndarray | None:
    """Values as shares of white in [0, 1], or None when the file does not say how."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    if items := dataset.get("VOILUTSequence"):
        grey, bits = _look_up(items[0], values)
        return np.clip(grey / (2**bits - 1), 0, 1)
    keywords = ("WindowCenter", "WindowWidth")
    if not any(value(dataset, keyword, str, "") for keyword in keywords):
        return None
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    # One unsigned bit: pydicom scales onto the range of stored values, here 0 to 1.
    window.BitsStored, window.PixelRepresentation = 1, 0
    window.VOILUTFunction = value(dataset, "VOILUTFunction", str, "LINEAR").upper()
    for keyword in keywords:  # not as DS: pydicom warns of more than 16 characters
        window.add_new(keyword, "FD", value(dataset, keyword, float))
    return apply_windowing(values, window)


def _look_up(item: Any, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values through a LUT's table, and the bits of its entries (PS3.3 C.11.1.1).

    pydicom 3.0 takes entries of 8 and 16 bits alone for one, and wraps values in both.
    """
    descriptor, data = (value(item, f"LUT{x}", bytes) for x in ("Descriptor", "Data"))
    n, first, bits = np.frombuffer(descriptor.ljust(6, b"\0")[:6], "<u2").tolist()
    n = n or 2**16
    size = 1 if bits == 8 and len(data) in (n, n + 1) and n > 1 else 2
    table = np.frombuffer(data[: n * size], f"<u{size}")
    top = int(table.max(initial=0))
    if not 8 <= bits <= 16 or len(data) - n * size not in (0, 1) or top >> bits:
        told = f"LUTDescriptor {[n, first, bits]}, LUTData {len(data)} bytes"
        raise ValueError(f"{told}, values up to {top}: they do not fit")
    if first >= 2**15 and (values.min() < 0 or values.max() < first):
        first -= 2**16
    if bits == 16 and top < 2**14:  # the size of an entry, where its range should be
        bits = max(top.bit_length(), 8)
    index = np.clip(np.rint(values) - first, 0, n - 1)
    return table[np.nan_to_num(index).astype(int)].astype(float), bits
