"""Small DICOM files of synthetic pixels, and an encoder for lossless JPEG."""

import io
import struct

import numpy as np
from PIL import Image

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE, BASELINE, EXTENDED = (f"1.2.840.10008.1.2.{x}" for x in ("5", "4.50", "4.51"))
LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{x}" for x in (57, 70))
J2K_LOSSLESS, J2K = (f"1.2.840.10008.1.2.4.{x}" for x in (90, 91))
SECRET = "Doe^Jane"

_RAMP = np.add.outer(np.arange(36) * 97, np.arange(33) * 41)
STORED = (_RAMP + np.random.default_rng(0).integers(0, 90, _RAMP.shape)) % 4096


def dataset(stored=STORED, bits=12, *, allocated=16, syntax=EXPLICIT, **elements):
    """A pydicom dataset; `stored` are values, negative ones make it signed."""
    import pydicom

    stored = np.asarray(stored)
    signed = bool((stored < 0).any())
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["x"])
    ds = pydicom.Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    ds.PatientName, ds.PatientID, ds.Modality = SECRET, "12345", "DX"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = allocated, bits, bits - 1
    ds.PixelRepresentation = int(signed)
    pattern = (stored & (2**bits - 1)).astype(f"<u{allocated // 8}")
    ds.PixelData = pattern.tobytes() + b"\0" * (pattern.nbytes % 2)
    ds["PixelData"].VR = "OW" if allocated == 16 else "OB"
    for keyword, value in elements.items():
        if value is None:
            del ds[keyword]
        else:
            setattr(ds, keyword, value)
    return ds


def encapsulated(frame, syntax, stored=STORED, bits=12, fragments=1, **elements):
    """A dataset whose pixels are `frame`, compressed as `syntax` says."""
    from pydicom import encaps

    ds = dataset(stored, bits, syntax=syntax, **elements)
    ds.PixelData = encaps.encapsulate([frame], fragments_per_frame=fragments)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def data(ds) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def made(*args, **elements) -> bytes:
    return data(dataset(*args, **elements))


def lut(values, first, bits, vr="US"):
    """One item of a LUT sequence."""
    import pydicom

    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", vr, [len(values) % 2**16, first, bits])
    item.add_new("LUTData", "OW", np.asarray(values, "<u2").tobytes())
    return [item]


def jpeg(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_2000(stored, bits, **options) -> bytes:
    from openjpeg.utils import encode_array

    dtype = np.int16 if (stored < 0).any() else np.uint16
    return bytes(
        encode_array(
            stored.astype(dtype),
            bits_stored=bits,
            photometric_interpretation=2,
            **options,
        )
    )


def rle(pattern) -> bytes:
    """PackBits of each byte, the high one first, row by row."""
    planes = np.atleast_3d(
        pattern.astype("<u2").view(np.uint8).reshape(*pattern.shape, 2)
    )
    segments = []
    for plane in (planes[..., 1], planes[..., 0]):
        segment = b"".join(map(_pack_bits, plane))
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [64, 64 + len(segments[0])]
    return struct.pack("<16I", 2, *offsets, *[0] * 13) + b"".join(segments)


def _pack_bits(row) -> bytes:
    out, i = b"", 0
    while i < len(row):
        run = 1
        while i + run < len(row) and run < 128 and row[i + run] == row[i]:
            run += 1
        if run > 2:
            out += bytes([257 - run, row[i]])
            i += run
            continue
        end = min(i + 5, len(row))
        out += bytes([end - i - 1]) + bytes(row[i:end])
        i = end
    return out


def lossless_jpeg(stored, precision) -> bytes:
    """Process 14 of ITU-T T.81, predictor 1, with a Huffman code of 5 bits a category.

    The category of a difference d is its number of bits; then come these bits, of
    d - 1 when it is negative.
    """
    stored = stored.astype(int)
    before = np.empty_like(stored)
    before[:, 1:] = stored[:, :-1]
    before[1:, 0] = stored[:-1, 0]
    before[0, 0] = 2 ** (precision - 1)
    bits = []
    for d in (stored - before).ravel().tolist():
        size = abs(d).bit_length()
        bits.append(f"{size:05b}")
        if size:
            bits.append(f"{d if d > 0 else d - 1 + 2**size:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = stored.shape
    table = bytes([0, *[0] * 4, 17, *[0] * 11]) + bytes(range(17))
    return (
        b"\xff\xd8\xff\xc3"
        + struct.pack(">HBHHBBBB", 11, precision, height, width, 1, 1, 0x11, 0)
        + b"\xff\xc4"
        + struct.pack(">H", 2 + len(table))
        + table
        + b"\xff\xda"
        + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
        + coded
        + b"\xff\xd9"
    )
