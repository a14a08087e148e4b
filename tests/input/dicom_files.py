"""Small DICOM files of synthetic pixels."""

import io

import numpy as np
from PIL import Image

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
RLE, BASELINE, EXTENDED = (f"1.2.840.10008.1.2.{x}" for x in ("5", "4.50", "4.51"))
LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{x}" for x in (57, 70))
LS, LS_NEAR = (f"1.2.840.10008.1.2.4.{x}" for x in (80, 81))
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
    """A codestream; lossless unless `options` have the PSNR `level`."""
    import imagecodecs

    dtype = np.int16 if (stored < 0).any() else np.uint16
    options = {"codecformat": "j2k", "reversible": "level" not in options} | options
    return imagecodecs.jpeg2k_encode(
        stored.astype(dtype), bitspersample=bits, **options
    )


def rle(pattern) -> bytes:
    """One frame of 16 bits a pixel, by pydicom's encoder."""
    from pydicom import encaps

    ds = dataset(pattern, 16)
    ds.compress(RLE, encoding_plugin="pydicom")
    return next(encaps.generate_frames(ds.PixelData, number_of_frames=1))


def lossless_jpeg(stored, precision, predictor=1) -> bytes:
    """Process 14 of ITU-T T.81."""
    import imagecodecs

    return imagecodecs.jpeg8_encode(
        stored.astype(np.uint8 if precision <= 8 else np.uint16),
        lossless=True,
        predictor=predictor,
        bitspersample=precision,
    )
