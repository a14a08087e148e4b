"""Reads the stored pixels of a DICOM file; imagecodecs decompresses them.

A compressed image states its size twice, in the DICOM elements and in its own header.
Both are compared before anything is decompressed, so that a small file cannot ask for
much memory or time. All errors are ValueErrors. Letters: h w image.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from pacx_jax.input import dicom_header
from pacx_jax.input.dicom_header import value

# The largest detector plates have about 20 million, mammograms at 50 micrometers 29.
MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # progressive encoders write 6 to 20
# Code blocks and precincts of JPEG 2000: OpenJPEG allocates up to 540 bytes for each
# before it decodes. 50 million pixels have 48,828 blocks of 32 x 32, the least in use.
MAX_BLOCKS = 2**18
_FRAMES = dict.fromkeys((0xFFC0, 0xFFC1, 0xFFC2, 0xFFC3), "jpeg8_decode")
_FRAMES[0xFFF7] = "jpegls_decode"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_SOT, _SOD, _COD, _COC = 0xFF90, 0xFF93, 0xFF52, 0xFF53  # markers of JPEG 2000


def read(syntax: str, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Reads one grey image of 8 to 16 bits, of what `dicom_header.read` returns.

    Returns:
      uint16 (h, w), the BitsStored low bits of each pixel, and int64
      (2^BitsStored,), the number that each pattern of bits stands for.
    """
    data = value(dataset, "PixelData", bytes)
    h, w = (value(dataset, keyword, int) for keyword in ("Rows", "Columns"))
    allocated = value(dataset, "BitsAllocated", int)
    stored = value(dataset, "BitsStored", int)
    high = value(dataset, "HighBit", int, stored - 1)
    signed = value(dataset, "PixelRepresentation", int)
    photometric = value(dataset, "PhotometricInterpretation", str)
    samples = value(dataset, "SamplesPerPixel", int, 1)
    frames = value(dataset, "NumberOfFrames", float, 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        raise ValueError(
            f"PhotometricInterpretation {photometric!r} with SamplesPerPixel {samples} "
            "is not grey (MONOCHROME1 or MONOCHROME2)"
        )
    if frames != 1:
        raise ValueError(f"NumberOfFrames {frames:g}: write each to a file of its own")
    if not 0 < h * w <= MAX_PIXELS:
        raise ValueError(f"Rows {h} x Columns {w}: 1 to {MAX_PIXELS} pixels are read")
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise ValueError(
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}: the low "
            "bits of 8 or 16 are read"
        )
    n = h * w * allocated // 8
    if syntax not in dicom_header.NATIVE:
        pixels = _decompress(syntax, data, (h, w), allocated, stored, signed)
    # Some writers pad; twice as much is another bit depth, or more frames.
    elif n <= len(data) < max(2 * n, n + 2):
        pixels = np.frombuffer(data, f"<u{allocated // 8}", h * w)
    else:
        raise ValueError(
            f"PixelData has {len(data)} bytes, where Rows {h}, Columns {w} and "
            f"BitsAllocated {allocated} make {n}"
        )
    values = np.arange(2**stored)
    if signed:
        values[2 ** (stored - 1) :] -= 2**stored
    # The unused bits once held overlays.
    pixels = pixels.astype(np.uint16) & np.uint16(2**stored - 1)
    return pixels.reshape(h, w), values


def _decompress(
    syntax: str, data: bytes, shape: tuple[int, int], *bits: int
) -> np.ndarray:
    """Pixels as integers; `bits` are allocated, stored and whether signed."""
    import imagecodecs
    from pydicom import encaps

    allocated, stored, signed = bits
    _, *fragments = encaps.generate_fragments(data)  # the first item is offsets
    frame = b"".join(fragments)
    if syntax == dicom_header.RLE:
        n, kind = shape[0] * shape[1], f"<u{allocated // 8}"
        room = bytearray((n + 128) * allocated // 8)  # some writers pad
        data = imagecodecs.dicomrle_decode(frame, kind, out=room)
        return np.frombuffer(data, kind, n)
    if frame[4:8] == b"jP  ":  # a whole JP2 file
        frame = frame[max(frame.find(_JPEG_2000), 0) :]
    if not frame[-256:].rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise ValueError("JPEG without its end: cut off")
    is_2000 = frame.startswith(_JPEG_2000)
    read_header = _jpeg_2000_header if is_2000 else _jpeg_header
    decoder, size, precision, is_signed = read_header(frame)
    other_sign = is_signed != signed and precision != stored
    if size != (*shape, 1) or precision > 16 or other_sign:
        raise ValueError(
            f"compressed image of {size[0]} rows, {size[1]} columns, {size[2]} "
            f"samples, {precision} bits, signed {int(is_signed)}, in Rows {shape[0]}, "
            f"Columns {shape[1]}, BitsStored {stored}, PixelRepresentation {signed}"
        )
    kind = f"{'i' if is_signed else 'u'}{1 if precision <= 8 else 2}"
    pixels = getattr(imagecodecs, decoder)(frame, out=np.empty(shape, kind))
    low, high, limit = int(pixels.min()), int(pixels.max()), 2 ** (stored - is_signed)
    if low < -limit or high >= limit:
        raise ValueError(f"values {low} to {high} in BitsStored {stored}")
    return pixels


def _jpeg_header(frame: bytes) -> tuple[str, tuple[int, ...], int, bool]:
    """Decoder; rows, columns and samples; bits of a sample; whether it is signed."""
    check_scans(frame)
    at = 2
    while (marker := int.from_bytes(frame[at : at + 2])) not in _FRAMES:
        # Neither scans nor markers without a length stand before the frame.
        if not (0xFFC0 < marker < 0xFFD0 or marker > 0xFFDA):
            raise ValueError(f"JPEG marker {marker:04X} before the frame header")
        at += 1 if marker == 0xFFFF else 2 + int.from_bytes(frame[at + 2 : at + 4])
    precision, *size = struct.unpack_from(">BHHB", frame, at + 4)
    return _FRAMES[marker], tuple(size), precision, False


def check_scans(jpeg: bytes) -> None:
    """ValueError for a JPEG of more scans than any encoder writes.

    Each passes over the whole image, and one of a hundred bytes may hold nothing.
    """
    if (scans := jpeg.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"JPEG of {scans} scans; at most {MAX_SCANS} are read")


def _jpeg_2000_header(frame: bytes) -> tuple[str, tuple[int, ...], int, bool]:
    """As `_jpeg_header` (T.800 A); ValueError where it asks for too much memory.

    Also where tiles are absent, which OpenJPEG fills with zeros.
    """
    *sizes, samples, depth, dx, dy = struct.unpack_from(">8IH3B", frame, 8)
    columns, rows, left, top, width, height = sizes[:6]
    if left or top or (dx, dy) != (1, 1) or not width * height:
        raise ValueError("JPEG 2000 image with an offset, subsampling or empty tiles")
    seen, at, end = set(), 2, len(frame)
    while at < len(frame) and frame[at : at + 2] != b"\xff\xd9":
        marker, length = struct.unpack_from(">2H", frame, at)
        if marker == _SOT:
            tile, size = struct.unpack_from(">HI", frame, at + 4)
            seen.add(tile)
            end = at + size if size else len(frame)
        elif marker in (_COD, _COC):
            # Progression, layers and transform stand in COD alone.
            start = at + (9 if marker == _COD else 6)
            _check_blocks(*frame[start : at + 2 + length], pixels=rows * columns)
        after = end if marker == _SOD else at + 2 + length
        if marker < 0xFF00 or not at + 2 < after <= end <= len(frame):
            raise ValueError(f"JPEG 2000 marker {marker:04X} at byte {at}: cut off")
        at = after
    tiles = -(-columns // width) * -(-rows // height)
    if len(seen) != tiles or max(seen) >= tiles:
        raise ValueError(f"JPEG 2000 with {len(seen)} of {tiles} tiles: cut off")
    return "jpeg2k_decode", (rows, columns, samples), depth % 128 + 1, depth >= 128


def _check_blocks(levels, width, height, _, __, *precincts, pixels):
    """ValueError for too many code blocks or precincts, of sizes as exponents of 2."""
    blocks, number = pixels >> (width + height + 4), 0
    for i, size in enumerate(precincts):
        shift = 2 * max(levels - i, 0) + (size & 15) + (size >> 4)
        number += (pixels >> shift) + 1
    if max(blocks, number) > MAX_BLOCKS:
        raise ValueError(
            f"JPEG 2000 with {blocks} code blocks and {number} precincts; at most "
            f"{MAX_BLOCKS} are read"
        )
