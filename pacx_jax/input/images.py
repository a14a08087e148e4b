"""Decoding, resizing and encoding of X-ray images, all as uint8 arrays.

The one rule for resizing, here and at inference, is PIL's bilinear filter with
antialiasing, squashing to a square: PIL itself does it, so there is nothing to
agree with. Letters: h w image, s the side of the resized square.
"""

from __future__ import annotations

import io
import os
import pathlib
import re

import cv2
import numpy as np
from PIL import Image

from pacx_jax.errors import PacxError
from pacx_jax.input import dicom
from pacx_jax.input.dicom_pixels import MAX_PIXELS, check_scans, is_dicom

FORMATS = ("JPEG", "PNG")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")

# A marker inside the pixels' code: 0xff is followed by 0, a restart or another 0xff.
_INNER_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# Threads belong to the input pipeline, not to each small call.
cv2.setNumThreads(0)


def decode(data: bytes | str | os.PathLike | np.ndarray, name: str = "") -> np.ndarray:
    """Decodes a JPEG, PNG or DICOM file into uint8 grey levels.

    Which of them it is, is read from its bytes. DICOM: see dicom.py.
    16-bit images are scaled by the full range of 16 bits, round(x / 257), whatever
    range the image uses, so that one grey level means the same in every file.
    Palettes are expanded, CMYK is converted, one-bit images become 0 and 255. Alpha
    is dropped, as PIL's `convert("RGB")` does. EXIF orientation is ignored.

    Args:
      data: the encoded file, or its path; uint8 pixels (h, w[, 1 or 3]) stay as they
        are.
      name: what messages call it; by default its path.

    Returns:
      uint8, (h, w) for grey images and (h, w, 3) for colour ones.

    Raises:
      PacxError: no such file, no JPEG, PNG or DICOM, truncated, corrupt, or larger
        than MAX_PIXELS.
    """
    if isinstance(data, np.ndarray):
        if data.ndim == 3 and data.shape[-1] == 1:
            return data[..., 0]
        return data if data.ndim == 2 else to_rgb(data)
    if not isinstance(data, bytes | bytearray | memoryview):
        name, data = name or str(data), _read(data)
    name = name or "image"
    if not data:
        raise PacxError(f"{name}: the file is empty; delete or replace it")
    if is_dicom(data):
        return dicom.decode(data, name)
    if is_plain_jpeg(data):
        # The same library as PIL's and the same pixels, but threads run beside it.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is not None and pixels.ndim == 2:
            return pixels
    try:
        if bytes(data[:2]) == b"\xff\xd8":
            check_scans(data)
        # Opening reads the header alone: a bomb is refused before it is unpacked.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            return _to_uint8(image, data)
    except Image.UnidentifiedImageError:
        raise PacxError(
            f"{name}: not a JPEG, PNG or DICOM image; convert or delete it"
        ) from None
    except Image.DecompressionBombError as error:
        raise PacxError(
            f"{name}: too large ({error}; the limit is {MAX_PIXELS} pixels); "
            "shrink or delete it"
        ) from None
    except Exception as error:  # hostile bytes make PIL raise almost anything
        raise PacxError(
            f"{name}: unreadable image ({_one_line(error)}); replace or delete it"
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


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Squashes to a square by PIL's antialiased bilinear filter.

    Args:
      image: uint8 (h, w) or (h, w, 3).
      size: s, the side in pixels.

    Returns:
      uint8 (s, s, 3). Grey images are resized once and then tripled, which gives
      the same pixels as resizing the three equal channels.
    """
    return to_rgb(resize_to(image, size, size))


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


def _read(path: str | os.PathLike) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        raise PacxError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({_one_line(error)})") from None


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
        elif marker not in (0xC4, 0xDB, 0xDD, 0xFE) and marker & 0xF0 != 0xE0:
            return False  # not a table, a comment or an application's
    return False


def _to_uint8(image: Image.Image, data: bytes) -> np.ndarray:
    image.load()
    if image.mode == "L":
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16-bit grey; "I" in older versions of PIL
        return _from_16_bits(np.asarray(image))
    if _is_16_bit_png(data):
        # PIL keeps only the high byte of 16-bit colour. It has checked the file
        # by now; OpenCV reads all the bits.
        wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if wide is None or wide.dtype != np.uint16:
            raise ValueError("16-bit PNG that OpenCV cannot read")
        if image.mode == "LA":
            return _from_16_bits(wide if wide.ndim == 2 else wide[..., 0])
        return _from_16_bits(wide[..., 2::-1] if wide.ndim == 3 else wide)
    if image.mode in ("1", "LA", "La"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def _is_16_bit_png(data: bytes) -> bool:
    # PNG: 8 bytes of signature, then IHDR with its bit depth at byte 24.
    return bytes(data[:8]) == b"\x89PNG\r\n\x1a\n" and data[24] == 16


def _from_16_bits(image: np.ndarray) -> np.ndarray:
    out = np.empty(image.shape, np.uint8)
    for start in range(0, len(image), 256):  # wider numbers of a few rows at a time
        rows = image[start : start + 256].astype(np.uint32)
        out[start : start + 256] = (rows + 128) // 257
    return out


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
