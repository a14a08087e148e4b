"""Reads the stored pixels of a DICOM file, and the elements that its image needs.

pydicom finds the elements. Their values are parsed here, because pydicom warns of every
one that deviates from the standard. No other element is parsed: no name, no date.
imagecodecs decompresses the pixels, after the sizes in the compressed image's own
header are compared to the elements, so that a small file cannot ask for much memory or
time. All errors are ValueErrors. Letters: h w image.
"""

from __future__ import annotations

import io
import re
import struct
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

# The largest detector plates have about 20 million, mammograms at 50 micrometers 29.
MAX_PIXELS = 50_000_000
MAX_SCANS = 100  # progressive encoders write 6 to 20
# Code blocks or precincts of JPEG 2000: OpenJPEG allocates up to 540 bytes for each
# before it decodes. 50 million pixels have 48,828 blocks of 32 x 32, the least in use.
MAX_BLOCKS = 2**18
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit VR
_RLE = "1.2.840.10008.1.2.5"
_JPEG = (f"1.2.840.10008.1.2.4.{i}" for i in (50, 51, 57, 70, 80, 81, 90, 91))
_SYNTAXES = (*_NATIVE, _RLE, *_JPEG)
_KEYWORDS = (
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit WindowCenter WindowWidth VOILUTFunction RescaleIntercept "
    "RescaleSlope ModalityLUTSequence VOILUTSequence PresentationLUTShape PixelData"
).split()
# A file without a preamble begins with file meta information, or with one of the first
# elements of an image: its tag, then its VR or the length of its value.
_FIRST = re.compile(rb"(?s)[\2\10]\0[\0\1\5\10\26]\0(UL|OB|CS|UI|.\0\0\0)")
_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?")
_FRAMES = {0xFFC0 + i: "jpeg8_decode" for i in range(4)} | {0xFFF7: "jpegls_decode"}
_ITEM = b"\xfe\xff\x00\xe0"  # begins compressed pixels
_JPEG_2000 = b"\xff\x4f\xff\x51"
# pydicom's modules import one another: of two threads that begin at once, one may find
# them half made.
_IMPORTING = threading.Lock()
_SOT, _SOD, _COD, _COC = 0xFF90, 0xFF93, 0xFF52, 0xFF53


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file: DICM at 128, or a known first element."""
    return bytes(data[128:132]) == b"DICM" or bool(_FIRST.match(bytes(data[:8])))


def _read_dataset(data: bytes, keywords: Sequence[str] = _KEYWORDS) -> tuple[str, Any]:
    """The UID of the transfer syntax, and the elements of the image."""
    with _IMPORTING:
        import pydicom.pixels  # noqa: F401 - of dicom.py, which comes here first
        from pydicom.datadict import tag_for_keyword
        from pydicom.filereader import read_dataset
        from pydicom.uid import UID_dictionary

    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    # Without meta information the first element tells, by having a VR or none.
    vr = data[file.tell() + 4 : file.tell() + 6]
    guess = _NATIVE[vr.isalpha() and vr.isupper()]
    syntax = value(meta, "TransferSyntaxUID", str, guess)
    if syntax not in _SYNTAXES:  # pydicom inflates others without a limit
        name = UID_dictionary.get(syntax, [""])[0]
        raise ValueError(
            f"TransferSyntaxUID {syntax!r} {name} is not supported, Explicit VR Little "
            "Endian is (dcmconv +te of DCMTK)"
        )
    tags = [tag_for_keyword(keyword) for keyword in keywords]
    options = {"stop_when": lambda tag, *_: tag > tags[-1], "specific_tags": tags}
    return syntax, read_dataset(file, syntax == _NATIVE[0], True, **options)


def text(data: bytes, keyword: str) -> str:
    """A text element of the header that `data` begins with, "" where it is absent."""
    _, dataset = _read_dataset(data, (keyword,))
    return value(dataset, keyword, str, "")


def size(data: bytes) -> tuple[int, int]:
    """Rows and Columns, as a file's header says; ValueError where it lacks them."""
    _, dataset = _read_dataset(data, ("Rows", "Columns"))
    return value(dataset, "Rows", int), value(dataset, "Columns", int)


def value(dataset: Any, keyword: str, kind: type, default: Any = None) -> Any:
    """The first value as int (VR US), str (CS) or float (DS, IS), or all bytes."""
    # keep_deferred: pydicom would otherwise convert an empty value by its VR.
    element = dataset.get_item(keyword, keep_deferred=True)
    raw = (element.value if element is not None else None) or b""
    if not isinstance(raw, bytes):
        raise ValueError(f"{keyword} is not a plain value")
    if kind in (str, float):
        raw = raw.partition(b"\\")[0].strip(b"\0 ")
    if not raw and default is None:
        raise ValueError(f"{keyword} is absent: cut off, or not an image")
    if not raw or kind is bytes:
        return raw or default
    if kind is int and len(raw) == 2:
        return int.from_bytes(raw, "little")
    if kind is str or (kind is float and _NUMBER.fullmatch(raw)):
        return kind(raw.decode("ascii", "replace"))
    raise ValueError(f"{keyword} {raw[:40]!r} is not a number of the element's kind")


def read(data: bytes) -> tuple[Any, np.ndarray, np.ndarray]:
    """Reads one grey image of 8 to 16 bits.

    Returns:
      The pydicom data set for `value`; uint16 (h, w), the BitsStored low bits of each
      pixel; int64 (2^BitsStored,), the number that each pattern of bits stands for.
    """
    syntax, dataset = _read_dataset(data)
    data = value(dataset, "PixelData", bytes)
    needed = "Rows Columns BitsAllocated BitsStored PixelRepresentation"
    h, w, allocated, stored, signed = (value(dataset, x, int) for x in needed.split())
    high = value(dataset, "HighBit", int, stored - 1)
    photometric = value(dataset, "PhotometricInterpretation", str)
    samples = value(dataset, "SamplesPerPixel", int, 1)
    frames = value(dataset, "NumberOfFrames", float, 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or (samples, frames) != (1, 1):
        raise ValueError(
            f"PhotometricInterpretation {photometric!r}, SamplesPerPixel {samples}, "
            f"NumberOfFrames {frames:g}: one grey frame a file is read"
        )
    if not 0 < h * w <= MAX_PIXELS:
        raise ValueError(f"Rows {h} x Columns {w}: 1 to {MAX_PIXELS} pixels are read")
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise ValueError(
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}: the low "
            "bits of 8 or 16 are read"
        )
    n = h * w * allocated // 8
    if syntax not in _NATIVE:
        try:
            pixels = _decompress(syntax, data, (h, w), allocated, stored, signed)
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(f"PixelData: {error}") from error
    elif data.startswith(_ITEM):
        raise ValueError(f"PixelData is compressed, but TransferSyntaxUID {syntax!r}")
    # Some writers pad; twice as much is another bit depth, or more frames.
    elif n <= len(data) < max(2 * n, n + 2):
        pixels = np.frombuffer(data, f"<u{allocated // 8}", h * w)
    else:
        raise ValueError(
            f"PixelData has {len(data)} bytes, where Rows {h}, Columns {w} and "
            f"BitsAllocated {allocated} make {n}"
        )
    values = np.arange(2**stored)
    values[2 ** (stored - 1) :] -= bool(signed) << stored
    # The unused bits once held overlays.
    pixels = pixels.astype(np.uint16) & np.uint16(2**stored - 1)
    return dataset, pixels.reshape(h, w), values


def _decompress(syntax, data, shape, allocated, stored, signed) -> np.ndarray:
    """Pixels as integers (h, w), or flat; `data` are those of PixelData."""
    import imagecodecs
    from pydicom import encaps

    _, *fragments = encaps.generate_fragments(data)  # the first item is offsets
    frame = b"".join(fragments)
    if syntax == _RLE:
        n, kind = shape[0] * shape[1], f"<u{allocated // 8}"
        room = bytearray((n + 128) * allocated // 8)  # some writers pad
        pixels = imagecodecs.dicomrle_decode(frame, kind, out=room)
        return np.frombuffer(pixels, kind, n)
    if frame[4:8] == b"jP  " and (at := frame.find(_JPEG_2000)) > 0:  # a JP2 file
        size = int.from_bytes(frame[at - 8 : at - 4])  # of the box; 0 or 1: not told
        frame = frame[at : at - 8 + size if size > 8 else None]
    if not frame[-256:].rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise ValueError("JPEG without its end: cut off")
    header = _jpeg_2000_header if frame.startswith(_JPEG_2000) else _jpeg_header
    decoder, size, precision, is_signed = header(frame)
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
    """ValueError for too many scans: each passes over the whole image."""
    if (scans := jpeg.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"JPEG of {scans} scans; at most {MAX_SCANS} are read")


def _jpeg_2000_header(frame: bytes) -> tuple[str, tuple[int, ...], int, bool]:
    """As `_jpeg_header` (T.800 A); refuses what lacks tiles or takes much memory."""
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
    if len(seen) != tiles or max(seen) >= tiles:  # OpenJPEG would give zeros
        raise ValueError(f"JPEG 2000 with {len(seen)} of {tiles} tiles: cut off")
    return "jpeg2k_decode", (rows, columns, samples), depth % 128 + 1, depth >= 128


def _check_blocks(levels, width, height, _, __, *precincts, pixels):
    """ValueError for too many code blocks or precincts, of sizes as exponents of 2."""
    blocks, number = pixels >> (width + height + 4), 0
    for i, size in enumerate(precincts):
        shift = 2 * max(levels - i, 0) + (size & 15) + (size >> 4)
        number += (pixels >> shift) + 1
    if max(blocks, number) > MAX_BLOCKS:
        raise ValueError(f"JPEG 2000 of {blocks} code blocks and {number} precincts")
