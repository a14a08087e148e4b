"""Decoding, resizing and encoding of X-ray images, all as uint8 arrays.

The one rule for resizing, here and at inference, is PIL's bilinear filter with
antialiasing, squashing to a square: PIL itself does it, so there is nothing to
agree with. Letters: h w image, s the side of the resized square.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from pacx_jax import files
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import dicom
from pacx_jax.input.dicom_pixels import MAX_PIXELS, check_scans, is_dicom

FORMATS = ("JPEG", "PNG")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")

_Scale = Callable[[np.ndarray], np.ndarray]  # 16-bit grey levels -> uint8
_PNG = b"\x89PNG\r\n\x1a\n"
_TURNED = ((3, 4, 7, 8), (2, 3, 6, 7))  # EXIF: rows, columns run backwards
_SCAN = b"\xff\xda"  # begins the pixels of a JPEG
_TABLES = (0xC4, 0xDB, 0xDD, 0xFE)  # of JPEG, and comments
# A marker inside the pixels' code: 0xff is followed by 0, a restart or another 0xff.
_INNER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# Threads belong to the input pipeline, not to each small call.
cv2.setNumThreads(0)


def decode(
    data: bytes | str | os.PathLike | np.ndarray | Image.Image,
    name: str = "",
    *,
    own_range: bool = False,
) -> np.ndarray:
    """Decodes a JPEG, PNG or DICOM file, or a PIL image, into uint8 grey levels.

    Which file it is, is read from its bytes. DICOM: see dicom.py. 16-bit images are
    scaled by the full range of 16 bits, round(x / 257), whatever range the image uses,
    so that one grey level means the same in every file; one of 12 or 14 bits, without a
    value above 16383, is refused. Palettes and other colours are converted, one-bit
    images become 0 and 255. Alpha and colour profiles are dropped, as by PIL's
    `convert("RGB")`; EXIF orientation is applied. An animated PNG or a JPEG of several
    pictures is its first, a PIL image the frame that it is at.

    Args:
      data: the encoded file, its path, or a PIL image; uint8 pixels (h, w[, 1 or 3])
        stay as they are.
      name: what messages call it; by default its path.
      own_range: 16-bit levels become 0 to 255 from the image's smallest to its largest,
        as of a DICOM without a window. For sets whose publisher did not scale them.

    Returns:
      uint8, (h, w) for grey images and (h, w, 3) for colour ones.

    Raises:
      PacxError: no such file, no JPEG, PNG or DICOM, truncated, corrupt, of floats, or
        larger than MAX_PIXELS.
    """
    if isinstance(data, np.ndarray):
        if data.ndim == 3 and data.shape[-1] == 1:
            return data[..., 0]
        return data if data.ndim == 2 else to_rgb(data)
    in_memory = isinstance(data, Image.Image)
    if not in_memory and not isinstance(data, bytes | bytearray | memoryview):
        if not isinstance(data, str | os.PathLike):  # a number would be an open file's
            raise PacxError(
                f"{type(data).__name__}: no image; give a file's path or bytes, a PIL "
                "image or uint8 pixels (h, w) or (h, w, 3)"
            )
        name, data = name or str(data), files.read_bytes(data)
    name = name or (f"PIL image of mode {data.mode}" if in_memory else "image")
    if not in_memory and not data:
        raise PacxError(f"{name}: the file is empty; delete or replace it")
    if not in_memory and is_dicom(data):
        return dicom.decode(data, name)
    try:
        scale = _by_own_range if own_range else _from_16_bits
        return _to_uint8(data, scale) if in_memory else _from_file(data, scale)
    except Image.UnidentifiedImageError:
        if other := "" if in_memory else files.other_kind(data):
            raise PacxError(f"{name}: {other}") from None
        raise PacxError(
            f"{name}: not a JPEG, PNG or DICOM image, or cut off; convert or delete it"
        ) from None
    except Exception as error:  # hostile bytes make PIL raise almost anything
        raise PacxError(
            f"{name}: unreadable image ({one_line(error)}); replace or delete it"
        ) from None


def to_rgb(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w), (h, w, 1) or (h, w, 3) -> uint8 (h, w, 3)."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=-1)
    if image.ndim != 3 or image.shape[-1] != 3:
        raise PacxError(
            f"image of shape {image.shape}: give (h, w) or (h, w, 3) uint8 arrays"
        )
    return image


def to_grey(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w), (h, w, 1) or (h, w, 3) -> uint8 (h, w, 1), by PIL's luma."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 3:
        image = np.asarray(Image.fromarray(image).convert("L"))
    return image if image.ndim == 3 else image[..., None]


def resize(image: np.ndarray, size: int, channels: int = 3) -> np.ndarray:
    """Squashes to a square by PIL's antialiased bilinear filter.

    Args:
      image: uint8 (h, w) or (h, w, 3).
      size: s, the side in pixels.
      channels: c, 3, or 1 for grey, of colour after the resize.

    Returns:
      uint8 (s, s, c). Grey images are resized once and then tripled, which gives
      the same pixels as resizing the three equal channels.
    """
    resized = resize_to(image, size, size)
    return to_rgb(resized) if channels == 3 else to_grey(resized)


def resize_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """PIL's antialiased bilinear resize of uint8 (h, w[, 3]), channels kept."""
    if image.dtype != np.uint8:
        raise PacxError(f"image of dtype {image.dtype}: give uint8 grey levels")
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def shrink(image: np.ndarray, shorter_side: int) -> np.ndarray:
    """Shrinks so that the shorter side is `shorter_side`; never enlarges."""
    return resize_to(image, *shrunk(image.shape, shorter_side))


def shrunk(shape: tuple[int, ...], shorter_side: int) -> tuple[int, int]:
    """(h, w) after `shrink`; 0 keeps the size."""
    height, width = shape[:2]
    ratio = shorter_side / min(height, width)
    if not 0 < ratio < 1:
        return height, width
    return max(round(height * ratio), 1), max(round(width * ratio), 1)


def encode_jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    """Encodes uint8 (h, w) as a one-channel JPEG, (h, w, 3) as a colour one."""
    return _encode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: np.ndarray) -> bytes:
    """Encodes uint8 (h, w) or (h, w, 3) as PNG, without loss."""
    return _encode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def _encode(extension: str, image: np.ndarray, options: list[int]) -> bytes:
    pixels = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    done, data = cv2.imencode(extension, pixels, options)
    if not done:
        raise PacxError(f"image of shape {image.shape} cannot be encoded")
    return data.tobytes()


def is_plain_jpeg(data: bytes) -> bool:
    """Whether it is a grey baseline JPEG of one scan, with each marker in its place.

    Of such a file OpenCV refuses what PIL refuses. It takes some damaged ones of other
    kinds for whole, and CMYK for something else: PIL decodes those.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        return False
    at, grey = 2, False
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment, at = data[at + 4 : at + 2 + length], at + 2 + length
        if marker == 0xC0:  # baseline: bits, height, width, number of components
            height, width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
            one = segment[:1] == b"\x08" and segment[5:6] == b"\x01"
            grey = one and 0 < height * width <= MAX_PIXELS
        elif marker == 0xDA:  # the pixels
            return grey and not _INNER_MARKER.search(data, at, len(data) - 2)
        elif marker == 0xE1 or marker & 0xF0 != 0xE0 and marker not in _TABLES:
            return False  # EXIF; not a table, a comment or an application's
    return False


def _from_file(data: bytes, scale: _Scale) -> np.ndarray:
    if not data:
        raise ValueError("the file is empty")
    if is_plain_jpeg(data):
        # The same library as PIL's and the same pixels, but threads run beside it.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 2:
            return pixels
    if bytes(data[:2]) == b"\xff\xd8":
        check_scans(data)
        # libjpeg takes the zeros of an unfinished download for pixels, without a word.
        if data[-2:] == b"\0\0" and data.find(b"\xff\xd9", data.rfind(_SCAN)) < 0:
            raise ValueError("zeros instead of the image's end: cut off")
    if bytes(data[:8]) == _PNG:
        data = _pixel_chunks(data)
    # Opening reads the header alone: a bomb is refused before it is unpacked.
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if math.prod(image.size) > MAX_PIXELS:
            raise ValueError(f"too large: {image.size}, the limit is {MAX_PIXELS}")
        # PIL keeps only the high byte of 16-bit colour. OpenCV reads all the bits.
        wide = image.format == "PNG" and data[24] == 16 and image.mode[:1] != "I"
        return _to_uint8(image, scale, data if wide else b"")


def _pixel_chunks(data: bytes) -> bytes:
    """A PNG without texts and profiles: PIL refuses whole files for their size."""
    chunks, at = [_PNG], len(_PNG)
    while at < len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):  # upper case: critical
            chunks.append(data[at:end])
        at = end
    return b"".join(chunks)


def _to_uint8(image: Image.Image, scale: _Scale, wide: bytes = b"") -> np.ndarray:
    """Pixels of a PIL image; `wide` is its file where PIL cuts its 16-bit colours."""
    image.load()
    if image.mode.startswith("I"):
        pixels = scale(np.asarray(image))
    elif wide:  # PIL has checked the file by now
        pixels = cv2.imdecode(np.frombuffer(wide, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16:
            raise ValueError("16-bit PNG that OpenCV cannot read")
        if pixels.ndim == 3:
            pixels = pixels[..., 0] if image.mode == "LA" else pixels[..., 2::-1]
        pixels = scale(pixels)
    elif image.mode == "F":
        raise ValueError("floats; scale them to mode L or I;16")
    else:
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    try:
        turn = image.getexif().get(0x0112, 1)  # orientation
    except Exception:  # damaged EXIF says nothing
        turn = 1
    pixels = pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
    rows, columns = (-1 if turn in turned else 1 for turned in _TURNED)
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _from_16_bits(image: np.ndarray) -> np.ndarray:
    low, high = int(image.min()), int(image.max())
    if low < 0 or high > 65535 or 0 < high < 2**14:
        raise ValueError(f"values {low} to {high} in 16 bits; scale them to 0 to 65535")
    out = np.empty(image.shape, np.uint8)
    for start in range(0, len(image), 256):  # wider numbers of a few rows at a time
        rows = image[start : start + 256].astype(np.uint32)
        out[start : start + 256] = (rows + 128) // 257
    return out


def _by_own_range(image: np.ndarray) -> np.ndarray:
    low, high = int(image.min()), int(image.max())
    if low < 0 or high > 65535:
        raise ValueError(f"values {low} to {high}: not of 16 bits")
    table = np.arange(high + 1, dtype=np.float64) - low  # a level depends on its value
    table *= 255 / max(high - low, 1)
    return np.rint(np.maximum(table, 0)).astype(np.uint8)[image]
