"""Decoding of awkward files, resizing as PIL does it, one-line errors."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from pacx_jax.errors import PacxError
from pacx_jax.input import images

GREY = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 255, (37, 53)).astype(np.uint8), (7, 7), 2
)
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 9)
        + b"IDAT"
    )


def test_png_of_8_bits_is_decoded_exactly():
    np.testing.assert_array_equal(
        images.decode(saved(Image.fromarray(GREY), "PNG")), GREY
    )
    np.testing.assert_array_equal(
        images.decode(saved(Image.fromarray(COLOUR), "PNG")), COLOUR
    )


def test_jpeg_is_decoded_as_pil_does(tmp_path):
    for image in (GREY, COLOUR):
        path = tmp_path / "x.jpg"
        path.write_bytes(saved(Image.fromarray(image), "JPEG", quality=95))
        decoded = images.decode(path)
        assert decoded.shape == image.shape and decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, np.asarray(Image.open(path)))


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
def test_16_bits_are_scaled_by_their_full_range(image):
    wide = image.astype(np.uint16) * 257
    assert wide.max() > 2**14
    data = cv2.imencode(".png", wide if wide.ndim == 2 else wide[..., ::-1])[1]
    np.testing.assert_array_equal(images.decode(data.tobytes()), image)


def test_16_bits_are_rounded_not_cut():
    wide = np.array([[128, 129, 65535, 65406]], np.uint16)
    data = cv2.imencode(".png", wide)[1].tobytes()
    np.testing.assert_array_equal(images.decode(data), [[0, 1, 255, 254]])


def test_alpha_of_16_bit_colour_is_dropped():
    wide = np.dstack([COLOUR[..., ::-1], GREY]).astype(np.uint16) * 257
    data = cv2.imencode(".png", wide)[1].tobytes()
    np.testing.assert_array_equal(images.decode(data), COLOUR)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of damaged EXIF
def test_damaged_jpegs_are_what_pil_makes_of_them(monkeypatch):
    """The faster decoder neither takes what PIL refuses nor gives other pixels."""
    film = images.encode_jpeg(GREY)
    restarts = saved(Image.fromarray(GREY), "JPEG", restart_marker_rows=1)
    assert images.is_plain_jpeg(film) and images.is_plain_jpeg(restarts)
    for kind in ({"progressive": True}, {}):
        image = Image.fromarray(GREY if kind else COLOUR)
        assert not images.is_plain_jpeg(saved(image, "JPEG", **kind))

    def result(data):
        try:
            return images.decode(data, "x").tobytes()
        except PacxError as error:
            return str(error)

    rng = np.random.default_rng(0)
    damaged = []
    for i in range(600):
        data = bytearray(restarts if i % 2 else film)
        start = rng.integers(2, len(data) - 2)
        data[start] = rng.integers(256)
        if i % 3 == 0:  # a gap, with or without the end
            del data[start : start + rng.integers(1, len(data))]
            data += b"\xff\xd9" * int(i % 2)
        damaged.append(bytes(data))
    plain = sum(map(images.is_plain_jpeg, damaged))
    assert 100 < plain < 500
    got = [result(data) for data in damaged]
    monkeypatch.setattr(images, "is_plain_jpeg", lambda data: False)
    assert got == [result(data) for data in damaged]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_one_line_with_its_name(tmp_path, kind):
    path = tmp_path / "cut.img"
    data = saved(Image.fromarray(COLOUR), kind)
    for part in (0.2, 0.6, 0.95):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(PacxError, match="cut.img") as error:
            images.decode(path)
        assert "\n" not in str(error.value)


def test_what_is_no_image_is_one_line_with_its_name(tmp_path):
    bad = tmp_path / "x.png"
    for data, word in ((b"", "empty"), (b"not an image", "not a JPEG, PNG or DICOM")):
        bad.write_bytes(data)
        with pytest.raises(PacxError, match=f"x.png: .*{word}"):
            images.decode(bad)
    with pytest.raises(PacxError, match="absent.png: no such file"):
        images.decode(tmp_path / "absent.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    with pytest.raises(PacxError, match="bomb: .*limit"):
        images.decode(png_header(side, side), "bomb")


def test_resize_is_pils_bilinear_antialiased_squash():
    for size in (16, 64):
        for image in (GREY, COLOUR):
            rgb = Image.fromarray(image).convert("RGB")
            expected = rgb.resize((size, size), Image.Resampling.BILINEAR)
            ours = images.resize(image, size)
            assert ours.shape == (size, size, 3)
            np.testing.assert_allclose(ours, np.asarray(expected), atol=1e-5)


def test_shrinking_keeps_the_aspect_and_never_enlarges():
    assert images.shrink(GREY, 20).shape == (20, 29)
    assert images.shrink(COLOUR.transpose(1, 0, 2), 20).shape == (29, 20, 3)
    assert images.shrink(GREY, 100) is GREY


def test_encoded_images_come_back():
    for image in (GREY, COLOUR):
        np.testing.assert_array_equal(images.decode(images.encode_png(image)), image)
        jpeg = images.decode(images.encode_jpeg(image)).astype(int)
        assert jpeg.shape == image.shape and np.abs(jpeg - image).mean() < 6
