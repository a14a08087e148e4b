"""The stored pixels of a DICOM file, from any of the usual transfer syntaxes.

A compressed image says its size twice, in the DICOM elements and in its own header.
Both are compared before anything is decompressed, so that a small file cannot ask for
much memory or time. Letters: h w image.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import dicom_header, jpeg_2000

MAX_SCANS = 100  # progressive encoders write 6 to 20
GREY = ("MONOCHROME1", "MONOCHROME2")
_RLE = "1.2.840.10008.1.2.5"
_DCT, _LOSSLESS, _LS = (0xC0, 0xC1, 0xC2), (0xC3,), (0xF7,)
# Transfer syntax -> the frame markers (SOF) that its JPEG may have.
_JPEG = {
    "1.2.840.10008.1.2.4.50": _DCT,
    "1.2.840.10008.1.2.4.51": _DCT,
    "1.2.840.10008.1.2.4.57": _LOSSLESS,
    "1.2.840.10008.1.2.4.70": _LOSSLESS,
    "1.2.840.10008.1.2.4.80": _LS,
    "1.2.840.10008.1.2.4.81": _LS,
}
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the pixels of an image are stored.

    Attributes:
      rows, columns: h, w.
      allocated: bits that a pixel takes, 8 or 16.
      stored: how many of these, the lower ones, are its value.
      signed: whether that is in two's complement.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool


def read_layout(elements: dicom_header.Elements, max_pixels: int) -> Layout:
    """The layout of one grey image; PacxError for anything else."""
    error = elements.error
    if not elements.raw("PixelData"):
        raise PacxError(
            f"{elements.name}: DICOM PixelData is absent: the file is cut off, or "
            "holds no image; replace or delete it"
        )
    photometric = elements.text("PhotometricInterpretation")
    samples = elements.integer("SamplesPerPixel", 1)
    if photometric not in GREY or samples != 1:
        raise error(
            "PhotometricInterpretation",
            photometric,
            f"with SamplesPerPixel {samples}, where an X-ray is {' or '.join(GREY)} "
            "with 1; convert it to grey or delete it",
        )
    frames = elements.text("NumberOfFrames", "1")
    if elements.number("NumberOfFrames", 1) != 1:
        raise error(
            "NumberOfFrames",
            frames,
            "an X-ray has 1; write each frame to a file of its own, or delete it",
        )
    layout = Layout(
        elements.integer("Rows"),
        elements.integer("Columns"),
        elements.integer("BitsAllocated"),
        elements.integer("BitsStored"),
        bool(elements.integer("PixelRepresentation")),
    )
    pixels = layout.rows * layout.columns
    if not 0 < pixels <= max_pixels:
        raise PacxError(
            f"{elements.name}: too {'large' if pixels else 'small'} (DICOM Rows "
            f"{layout.rows} x Columns {layout.columns}; the limit is {max_pixels} "
            "pixels); replace or delete it"
        )
    if layout.allocated not in (8, 16):
        raise error(
            "BitsAllocated", layout.allocated, "8 and 16 are read; convert or delete it"
        )
    if not 1 <= layout.stored <= layout.allocated:
        raise error(
            "BitsStored",
            layout.stored,
            f"not in 1 to BitsAllocated {layout.allocated}; mend or delete the file",
        )
    high = elements.integer("HighBit", layout.stored - 1)
    if high != layout.stored - 1:
        raise error(
            "HighBit",
            high,
            f"not BitsStored {layout.stored} less one; mend or delete the file",
        )
    return layout


def read(syntax: str, elements: dicom_header.Elements, layout: Layout) -> np.ndarray:
    """The stored bits of each pixel, as an unsigned number below 2^layout.stored.

    Returns:
      uint8 or uint16 (h, w); of signed images the two's complement.

    Raises:
      PacxError: a transfer syntax that is not read, the package for it is absent, too
        few bytes, damaged ones, or an image that is not the one described.
    """
    data = elements.raw("PixelData")
    if syntax in (dicom_header.EXPLICIT, dicom_header.IMPLICIT):
        return _low_bits(_native(data, elements, layout), layout)
    known = (_RLE, *_JPEG, *_JPEG_2000)
    if syntax not in known:
        raise elements.error(
            "TransferSyntaxUID",
            syntax,
            "not one that is read (uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000); "
            "convert the file, for instance with dcmconv or gdcmconv --raw",
        )
    try:
        frame = _frame(data)
        if syntax == _RLE:
            return _low_bits(_decode_rle(frame, layout), layout)
        decode = _decode_jpeg_2000 if syntax in _JPEG_2000 else _decode_jpeg
        return decode(frame, layout, syntax)
    except ImportError as error:
        raise PacxError(
            f"{elements.name}: DICOM with compressed pixels, which need the extra "
            f"dicom ({error}): pip install 'pylibjpeg[all]>=2'"
        ) from None
    except Exception as error:  # hostile bytes make decoders raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise PacxError(
            f"{elements.name}: unreadable DICOM PixelData ({reason}); replace or "
            "delete it"
        ) from None


def _native(data: bytes, elements: dicom_header.Elements, layout: Layout) -> np.ndarray:
    n = layout.rows * layout.columns * layout.allocated // 8
    # Some writers pad; twice as much is another bit depth, or more frames.
    if not n <= len(data) < max(2 * n, n + 2):
        raise PacxError(
            f"{elements.name}: DICOM PixelData has {len(data)} bytes, where Rows "
            f"{layout.rows}, Columns {layout.columns} and BitsAllocated "
            f"{layout.allocated} make {n}; replace or delete it"
        )
    pixels = np.frombuffer(
        data, f"<u{layout.allocated // 8}", layout.rows * layout.columns
    )
    return pixels.reshape(layout.rows, layout.columns)


def _low_bits(pixels: np.ndarray, layout: Layout) -> np.ndarray:
    """Without the unused bits, in which overlays were once kept."""
    if layout.stored == layout.allocated:
        return pixels
    return pixels & pixels.dtype.type(2**layout.stored - 1)


def _frame(data: bytes) -> bytes:
    """The one frame of encapsulated pixels, its fragments joined."""
    from pydicom import encaps

    _, *fragments = encaps.generate_fragments(data)  # the first item is offsets
    return b"".join(fragments)


def _decode_rle(frame: bytes, layout: Layout) -> np.ndarray:
    """PS3.5 annex G: a segment of PackBits for each byte, the high one first."""
    n, parts = layout.rows * layout.columns, layout.allocated // 8
    count, *offsets = struct.unpack_from("<16I", frame)
    if count != parts:
        raise ValueError(f"{count} RLE segments for BitsAllocated {layout.allocated}")
    ends = [*offsets[1:count], len(frame)]
    pixels = np.empty((n, parts), np.uint8)
    for i, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not 64 <= start <= end <= len(frame):
            raise ValueError(f"RLE segment at {start} to {end} of {len(frame)} bytes")
        segment = _unpack_bits(frame[start:end], n)
        pixels[:, parts - 1 - i] = np.frombuffer(segment, np.uint8)
    return pixels.view(f"<u{parts}").reshape(layout.rows, layout.columns)


def _unpack_bits(data: bytes, n: int) -> bytes:
    """The first n bytes of a PackBits segment, never more than 128 beyond.

    Written here because the extension of pylibjpeg-rle aborts on damaged data by an
    exception that `except Exception` does not catch.
    """
    out, i, end = bytearray(), 0, len(data)
    while len(out) < n and i < end:
        head = data[i]
        if head < 128:
            out += data[i + 1 : i + 2 + head]
            i += 2 + head
        elif head > 128:
            out += data[i + 1 : i + 2] * (257 - head)
            i += 2
        else:
            i += 1
    if len(out) < n:
        raise ValueError(f"RLE segment of {len(out)} bytes, not {n}: cut off")
    return bytes(out[:n])


def _decode_jpeg(frame: bytes, layout: Layout, syntax: str) -> np.ndarray:
    """JPEG and JPEG-LS, by pylibjpeg-libjpeg."""
    import libjpeg

    marker, precision, rows, columns, samples = _jpeg_header(frame)
    if marker not in _JPEG[syntax]:
        raise ValueError(f"JPEG of kind {marker:02X} in transfer syntax {syntax}")
    _check_header((rows, columns, samples), precision, layout)
    if layout.signed and precision != layout.stored:
        raise ValueError(f"signed JPEG of {precision} bits, BitsStored {layout.stored}")
    return _checked(libjpeg.decode(frame), layout, signed=False)


def _jpeg_header(frame: bytes) -> tuple[int, int, int, int, int]:
    """Marker, precision, rows, columns and samples of the first frame header."""
    if frame[:2] != b"\xff\xd8" or not _ends(frame):
        raise ValueError("JPEG without its start or end: cut off")
    check_scans(frame)
    i = 2
    while True:
        i = frame.index(b"\xff", i)
        marker = frame[i + 1]
        if marker == 0xFF:
            i += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, *struct.unpack_from(">BHHB", frame, i + 4)
        elif marker == 0xF7:
            return marker, *struct.unpack_from(">BHHB", frame, i + 4)
        elif marker < 0xC0 or 0xD0 <= marker <= 0xDA or marker == 0xDE:
            raise ValueError(f"JPEG marker {marker:02X} before the frame header")
        else:
            i += 2 + struct.unpack_from(">H", frame, i + 2)[0]


def check_scans(jpeg: bytes) -> None:
    """ValueError for a JPEG of more scans than any encoder writes.

    Each passes over the whole image, and one of a hundred bytes may hold nothing.
    """
    scans = jpeg.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise ValueError(f"JPEG of {scans} scans; at most {MAX_SCANS} are read")


def _decode_jpeg_2000(frame: bytes, layout: Layout, syntax: str) -> np.ndarray:
    """JPEG 2000, by pylibjpeg-openjpeg."""
    import openjpeg

    del syntax
    if frame[:4] != b"\xff\x4f\xff\x51" or not _ends(frame):
        raise ValueError("JPEG 2000 codestream without its start or end: cut off")
    size = struct.unpack_from(">8IH3B", frame, 8)
    columns, rows, *offset, tile_width, tile_height, _, _, samples = size[:9]
    depth, dx, dy = size[9:]
    if any(offset) or (dx, dy) != (1, 1):
        raise ValueError("JPEG 2000 image with an offset or subsampling")
    if not tile_width or not tile_height:
        raise ValueError("JPEG 2000 tiles without pixels")
    _check_header((rows, columns, samples), depth % 128 + 1, layout)
    tiles = -(-columns // tile_width) * -(-rows // tile_height)
    jpeg_2000.check(frame, rows, columns, tiles)
    signed = depth >= 128
    if signed != layout.signed:
        raise ValueError(
            f"JPEG 2000 signed {int(signed)}, PixelRepresentation {int(layout.signed)}"
        )
    return _checked(openjpeg.decode(frame), layout, signed)


def _ends(frame: bytes) -> bool:
    """Whether the end marker, the same of JPEG and JPEG 2000, is there."""
    return frame[-256:].rstrip(b"\0\xff").endswith(b"\xff\xd9")


def _check_header(shape: tuple[int, ...], precision: int, layout: Layout) -> None:
    if shape != (layout.rows, layout.columns, 1) or precision > 16:
        raise ValueError(
            f"compressed image of {shape[0]} rows, {shape[1]} columns, {shape[2]} "
            f"samples and {precision} bits, Rows {layout.rows}, Columns "
            f"{layout.columns}"
        )


def _checked(pixels: np.ndarray, layout: Layout, signed: bool) -> np.ndarray:
    """Decoded values as stored bits; ValueError when they need more than there are."""
    if pixels.shape != (layout.rows, layout.columns) or pixels.dtype.itemsize > 2:
        raise ValueError(f"decoded to {pixels.dtype} {pixels.shape}")
    low, high = (0, 2**layout.stored - 1)
    if signed:
        low, high = -(high // 2) - 1, high // 2
    if pixels.min() < low or pixels.max() > high:
        raise ValueError(
            f"values {pixels.min()} to {pixels.max()} in BitsStored {layout.stored}"
        )
    bits = pixels.view(f"<u{pixels.dtype.itemsize}")
    return bits & bits.dtype.type((2**layout.stored - 1) & np.iinfo(bits.dtype).max)
