"""DICOM X-rays as uint8 grey levels, by the grey pipeline of the standard.

Stored values, then the modality transform (PS3.3 C.11.1), the VOI transform (C.11.2),
and the polarity, in this order:

1. Stored value: the low BitsStored bits, in two's complement if PixelRepresentation
   is 1.
2. Modality: ModalityLUTSequence, else value * RescaleSlope + RescaleIntercept.
3. VOI: the first item of VOILUTSequence, else the first WindowCenter and WindowWidth by
   VOILUTFunction (LINEAR where it is absent, LINEAR_EXACT, SIGMOID), onto 0 to 255.
   Without either the smallest value becomes 0 and the largest 255, as MIMIC-CXR-JPG
   was made, padding left out.
4. Polarity: 255 - y when PhotometricInterpretation is MONOCHROME1 or
   PresentationLUTShape is INVERSE, once if it is both.
5. Rounded to the nearest grey level; pixels of PixelPaddingValue (to
   PixelPaddingRangeLimit) are 0, black.

A pixel's grey level depends on its stored value alone, so this is one table of at most
65,536 entries. Overlays, orientation, pixel spacing and presentation states are not
applied. Nothing else of the header is read.
"""

from __future__ import annotations

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import dicom_header, dicom_pixels

# The largest detector plates have about 20 million, mammograms at 50 micrometers 29.
MAX_PIXELS = 50_000_000
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

is_dicom = dicom_header.is_dicom


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes a DICOM X-ray.

    Args:
      data: the file, with or without a preamble.
      name: what messages call it.

    Returns:
      uint8 (h, w).

    Raises:
      PacxError: not one grey image of 8 to 16 bits in a known transfer syntax, too
        large, cut off, damaged, contradictory, or the extra `dicom` is missing.
    """
    syntax, elements = dicom_header.read(bytes(data), name)
    layout = dicom_pixels.read_layout(elements, MAX_PIXELS)
    stored = dicom_pixels.read(syntax, elements, layout)
    with np.errstate(all="ignore"):  # what overflows is refused below
        table = _grey_table(elements, layout, stored)
    return table[stored]


def _grey_table(
    elements: dicom_header.Elements, layout: dicom_pixels.Layout, stored: np.ndarray
) -> np.ndarray:
    """uint8 (2^BitsStored,): the grey level of each stored value."""
    values = np.arange(2**layout.stored)
    if layout.signed:
        values[2 ** (layout.stored - 1) :] -= 2**layout.stored
    padding = _padding(elements, layout, values)
    values = _modality(elements, layout, values)
    grey = _voi(elements, layout, values)
    if grey is None:
        seen = np.zeros(len(values), bool)
        seen[stored] = True
        inside = values[seen & ~padding]
        low, high = (inside.min(), inside.max()) if inside.size else (0.0, 0.0)
        grey = np.clip((values - low) / max(high - low, 1e-30), 0, 1)
    if np.isnan(grey).any():
        raise PacxError(
            f"{elements.name}: DICOM rescale, window or table gives values that are no "
            "numbers; mend or delete the file"
        )
    shape = elements.text("PresentationLUTShape", "IDENTITY")
    if shape not in ("IDENTITY", "INVERSE"):
        raise elements.error(
            "PresentationLUTShape", shape, "not IDENTITY or INVERSE; mend the file"
        )
    if shape == "INVERSE" or elements.text("PhotometricInterpretation")[-1] == "1":
        grey = 1 - grey
    return np.where(padding, 0, np.rint(255 * grey)).astype(np.uint8)


def _padding(
    elements: dicom_header.Elements, layout: dicom_pixels.Layout, values: np.ndarray
) -> np.ndarray:
    """Which stored values are padding (PS3.3 C.7.5.1.1.2)."""
    if not elements.raw("PixelPaddingValue"):
        return np.zeros(len(values), bool)
    one = elements.integer("PixelPaddingValue")
    ends = [one, elements.integer("PixelPaddingRangeLimit", one)]
    if layout.signed:
        ends = [end - 2**16 if end >= 2**15 else end for end in ends]
    return (values >= min(ends)) & (values <= max(ends))


def _modality(
    elements: dicom_header.Elements, layout: dicom_pixels.Layout, values: np.ndarray
) -> np.ndarray:
    item = elements.first_item("ModalityLUTSequence")
    if item is not None:
        return _look_up(item, layout.signed, values)[0]
    slope = elements.number("RescaleSlope", 1)
    if slope == 0:
        raise elements.error("RescaleSlope", 0, "makes all values one; mend the file")
    return values * slope + elements.number("RescaleIntercept", 0)


def _voi(
    elements: dicom_header.Elements, layout: dicom_pixels.Layout, values: np.ndarray
) -> np.ndarray | None:
    """Values as shares of white in [0, 1], or None when the file does not say how."""
    item = elements.first_item("VOILUTSequence")
    if item is not None:
        # Values of the modality transform may be negative where stored ones are not.
        signed = layout.signed or bool((values < 0).any())
        grey, bits = _look_up(item, signed, values)
        return np.clip(grey / (2**bits - 1), 0, 1)
    centers, widths = elements.numbers("WindowCenter"), elements.numbers("WindowWidth")
    if not centers and not widths:
        return None
    if not centers or not widths:
        raise elements.error(
            "WindowCenter, WindowWidth",
            (centers, widths),
            "one without the other; mend the file",
        )
    function = elements.text("VOILUTFunction", "LINEAR").upper()
    if function not in FUNCTIONS:
        raise elements.error(
            "VOILUTFunction", function, f"not {', '.join(FUNCTIONS)}; mend the file"
        )
    return window(values, centers[0], widths[0], function, elements)


def window(
    values: np.ndarray,
    center: float,
    width: float,
    function: str,
    elements: dicom_header.Elements,
) -> np.ndarray:
    """Shares of white in [0, 1] by PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if width <= 0 or (function == "LINEAR" and width < 1):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise elements.error(
            "WindowWidth", width, f"must be {least} for {function}; mend the file"
        )
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(float)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(
    item: dicom_header.Elements, signed: bool, values: np.ndarray
) -> tuple[np.ndarray, int]:
    """Values through a LUT's table, and the bits of its entries (PS3.3 C.11.1.1)."""
    descriptor = item.raw("LUTDescriptor")
    if len(descriptor) != 6:
        raise item.error("LUTDescriptor", descriptor, "three numbers are needed")
    n, first, bits = (int(x) for x in np.frombuffer(descriptor, "<u2"))
    n = n or 2**16
    vr = item.vr("LUTDescriptor")
    if first >= 2**15 and (vr == "SS" or (vr != "US" and signed)):
        first -= 2**16
    data = item.raw("LUTData")
    size = 1 if bits == 8 and len(data) in (n, n + 1) and n > 1 else 2
    if not 8 <= bits <= 16 or len(data) < n * size:
        raise item.error(
            "LUTDescriptor",
            (n, first, bits),
            f"LUTData has {len(data)} bytes; mend or delete the file",
        )
    table = np.frombuffer(data, f"<u{size}", n).astype(float)
    index = np.clip(np.rint(values) - first, 0, n - 1)
    return table[np.nan_to_num(index).astype(int)], bits
