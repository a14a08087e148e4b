"""Images and DICOM files to damage, and how they are read."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image

from pacx_jax.input import images, masks
from tests.fuzz.readers import Reader
from tests.input import dicom_files as dicom

_GREY = (np.add.outer(np.arange(21) * 9, np.arange(30) * 5) % 256).astype(np.uint8)


def _encoded(kind: str, mode: str, **options) -> bytes:
    grey = Image.fromarray(_GREY)
    image = Image.fromarray(_GREY.astype(np.uint16) * 257) if mode == "I;16" else grey
    image = image if mode == "I;16" else grey.convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pngs() -> list[bytes]:
    """PNGs of every kind that is decoded in its own way."""
    import cv2

    wide = np.stack([_GREY.astype(np.uint16) * 257] * 4, -1)
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    colour = [cv2.imencode(".png", wide[..., :c])[1].tobytes() for c in (3, 4)]
    return [_encoded("PNG", mode) for mode in modes] + colour


def jpegs() -> list[bytes]:
    """JPEGs, grey and colour, sequential and progressive."""
    plain = [_encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
    exif = Image.Exif()
    exif[0x0112] = 6
    more = [_encoded("JPEG", "RGB", progressive=True, exif=exif)]
    return plain + more + [_encoded("JPEG", "L", restart_marker_blocks=1)]


def dicoms() -> list[bytes]:
    """DICOM files of the transfer syntaxes, with windows and tables."""
    import imagecodecs

    stored = dicom.STORED
    window = {"WindowCenter": "2000", "WindowWidth": "900", "RescaleSlope": "2"}
    window |= {"RescaleIntercept": "-5", "PixelPaddingValue": 7}
    made = [dicom.made(), dicom.made(syntax=dicom.IMPLICIT, **window)]
    made.append(dicom.made(stored - 2000, 12, WindowCenter="1\\2", WindowWidth="9\\8"))
    made.append(dicom.made(VOILUTSequence=dicom.lut(range(300), 5, 9)))
    short = stored.astype(np.uint16)
    for syntax, frame in (
        (dicom.RLE, dicom.rle(stored)),
        (dicom.J2K, dicom.jpeg_2000(stored, 12)),
        (dicom.J2K, dicom.jpeg_2000(stored, 12, codecformat="jp2")),
        (dicom.LOSSLESS, dicom.lossless_jpeg(stored, 12)),
        (dicom.EXTENDED, imagecodecs.jpeg8_encode(short, level=90, bitspersample=12)),
        (dicom.LS, imagecodecs.jpegls_encode(short)),
    ):
        made.append(dicom.data(dicom.encapsulated(frame, syntax)))
    smooth = np.minimum(stored // 16, 255)
    made.append(
        dicom.data(
            dicom.encapsulated(
                dicom.jpeg(smooth), dicom.BASELINE, smooth, 8, allocated=8
            )
        )
    )
    return made


def _writes(name: str, seeds):
    def draw(folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(seeds()[0])

    return draw


def _image(path: pathlib.Path) -> None:
    image = images.decode(path)
    assert image.dtype == np.uint8 and image.ndim in (2, 3) and image.size
    assert image.size <= 3 * images.MAX_PIXELS


def _mask(path: pathlib.Path) -> None:
    assert set(np.unique(masks.decode(path, str(path)))) <= {0, 1}


READERS = {
    "png": Reader("x.png", _writes("x.png", pngs), _image, seeds=pngs),
    "jpeg": Reader("x.jpg", _writes("x.jpg", jpegs), _image, seeds=jpegs),
    "dicom": Reader("x.dcm", _writes("x.dcm", dicoms), _image, seeds=dicoms),
    "mask": Reader("m.png", _writes("m.png", pngs), _mask, seeds=pngs),
}
