"""Images that went wrong elsewhere: the right levels, or one line."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from pacx_jax.errors import PacxError
from pacx_jax.input import images
from tests.input import dicom_files as files

LEVELS = np.add.outer(np.arange(24) * 7, np.arange(31) * 3).astype(np.uint8)
WIDE = LEVELS.astype(np.uint16) * 257
SIZE = LEVELS.shape[::-1]
GREY = Image.fromarray(LEVELS)


def saved(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data, name="x.png") -> str:
    with pytest.raises(PacxError) as caught:
        images.decode(data, name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def wide(mode, order="<"):
    return Image.frombytes(mode, SIZE, WIDE.astype(f"{order}u2").tobytes())


# Pillow 5967, 9022, 9931: 16 bits that a conversion clips. Beside: allowed difference.
MODES = {
    "I;16": (wide("I;16"), 0),
    "I;16L": (wide("I;16L"), 0),
    "I;16B": (wide("I;16B", ">"), 0),
    "I;16N": (wide("I;16N", "="), 0),
    "I": (Image.fromarray(WIDE.astype(np.int32)), 0),
    "CMYK": (GREY.convert("RGB").convert("CMYK"), 0),
    "YCbCr": (GREY.convert("YCbCr"), 1),
    "HSV": (GREY.convert("RGB").convert("HSV"), 1),
    "LAB": (GREY.convert("RGB").convert("LAB"), 2),  # its L has steps of 0.4
    "PA": (GREY.convert("PA"), 0),
} | {mode: (GREY.convert(mode), 0) for mode in ("L", "LA", "P", "RGB", "RGBA")}
for mode in ("LA", "RGBA", "PA"):
    MODES[mode][0].putalpha(Image.fromarray(255 - LEVELS))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_the_levels_of_the_same_values(mode):
    image, most = MODES[mode]
    assert image.mode == mode
    got = images.to_rgb(images.decode(image)).astype(int)
    assert np.abs(got - LEVELS[..., None]).max() <= most
    kinds = {"PNG": ("L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("CMYK", "YCbCr")}
    for kind in (kind for kind, modes in kinds.items() if mode in modes):
        data = saved(image, kind)
        with Image.open(io.BytesIO(data)) as opened:
            memory = images.decode(opened)
        np.testing.assert_array_equal(images.decode(data), memory)
        most = 9 if kind == "JPEG" else 0
        assert np.abs(images.to_rgb(memory).astype(int) - got).max() <= most


def test_one_bit_is_black_and_white():
    bits = GREY.convert("1")
    assert set(np.unique(images.decode(bits))) == {0, 255}
    np.testing.assert_array_equal(images.decode(bits), images.decode(saved(bits)))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_16_bit_tiff_in_memory_has_its_levels(order):
    mode = {"<": "I;16", ">": "I;16B"}[order]  # Pillow 452
    with Image.open(io.BytesIO(saved(wide(mode, order), "TIFF"))) as opened:
        assert opened.mode == mode
        np.testing.assert_array_equal(images.decode(opened), LEVELS)


def raw(values, dtype):
    return Image.fromarray(values.astype(dtype))


REFUSED = {
    "floats": (raw(LEVELS / 255, "f4"), "floats; scale them"),
    "NaN": (raw(LEVELS * np.nan, "f4"), "floats; scale them"),
    "negative": (raw(LEVELS - 9.0, "i4"), "values -9 to 242 in 16 bits"),
    "32 bits": (raw(WIDE * 9.0, "i4"), "values 0 to 580563 in 16"),
    # Pillow 5403: values of 8 bits in 16 would be black.
    "8 in 32": (raw(LEVELS, "i4"), "values 0 to 251 in 16 bits"),
    "12 in 16": (saved(raw(LEVELS * 16.0, "u2")), "values 0 to 4016 in 16 bits"),
    "14 in 16": (saved(raw(LEVELS * 64.0, "u2")), "values 0 to 16064 in 16 bits"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    # PhysioNet, without a login
    "page": (b"\n<!DOCTYPE html>\n<html>", "HTML or XML, such as a page that asks"),
    "8 in 16": (saved(raw(LEVELS, "u2")), "values 0 to 251 in"),
    "premultiplied": (GREY.convert("LA").convert("La"), "not supported"),
    "TIFF": (saved(Image.fromarray(WIDE), "TIFF"), "not a JPEG, PNG or DICOM"),
    "GIF": (saved(GREY, "GIF"), "not a JPEG, PNG or DICOM"),
    "cut, in memory": (
        Image.open(io.BytesIO(saved(GREY.resize((200, 200)))[:-400])),
        "unreadable image",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_levels_is_one_line(case):
    image, message = REFUSED[case]
    assert message in refusal(image)


def test_large_profiles_and_texts_do_not_matter():
    # Pillow 2445, 8363; KatherLab/STAMP 76: "Decompressed data too large".
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 2**21, zip=True)
    text.add_itxt("b", "y" * 2**21, zip=True)
    for image in (GREY, Image.fromarray(WIDE)):
        data = saved(image, pnginfo=text, icc_profile=bytes(2**21))
        np.testing.assert_array_equal(images.decode(data), LEVELS)
        for cut in (60, 3000):  # within the pixels, before them
            assert "cut off" in refusal(data[:-cut]).replace("truncated", "cut off")


@pytest.mark.parametrize("turn", range(10))
def test_exif_orientation_is_applied(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    colour = Image.fromarray(np.dstack([LEVELS, LEVELS[::-1], 255 - LEVELS]))
    for image, kind in ((GREY, "JPEG"), (colour, "JPEG"), (colour, "PNG")):
        data = saved(image, kind, exif=exif)
        with Image.open(io.BytesIO(data)) as opened:
            expected = np.asarray(ImageOps.exif_transpose(opened))
            np.testing.assert_array_equal(images.decode(opened), expected)
        np.testing.assert_array_equal(images.decode(data), expected)
    np.testing.assert_array_equal(
        images.decode(saved(Image.fromarray(WIDE), exif=exif)),
        images.decode(saved(GREY, exif=exif)),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_says_nothing():
    data = saved(GREY, exif=b"Exif\0\0MM\0*\0\0\xff\xff\0\x09")
    np.testing.assert_array_equal(images.decode(data), LEVELS)


def test_of_several_frames_the_first_or_the_one_at_hand():
    other = ImageOps.invert(GREY)

    def both(kind):
        more = {"save_all": True, "append_images": [other.copy()]}
        return saved(GREY.copy(), kind, **more)

    np.testing.assert_array_equal(images.decode(both("PNG")), LEVELS)
    first = images.decode(saved(GREY, "JPEG"))
    np.testing.assert_array_equal(images.decode(both("MPO")), first)
    with Image.open(io.BytesIO(both("TIFF"))) as stack:
        stack.seek(1)
        np.testing.assert_array_equal(images.decode(stack), 255 - LEVELS)


pytest.importorskip("pydicom", reason="the extra dicom is not installed")
STORED = files.STORED


def shares(x):
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def lut(values, first, bits, vr="US", n=None):
    """A LUT sequence with `n` in its descriptor, by default the values' number."""
    items = files.lut(values, first, bits, vr)
    if n is not None:
        items[0].LUTDescriptor = [n, first, bits]
    return items


RAMP = np.arange(4096)


def with_table(items, stored=STORED):
    return images.decode(files.made(stored, VOILUTSequence=items), "x.dcm")


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_table_of_fewer_bits_than_its_descriptor_says_is_not_dark(bits):
    # Enet4/dicom-rs 825 (Agfa's CRs), cornerstone 79: 16 is the size of an entry.
    table = RAMP >> max(12 - bits, 0) << max(bits - 12, 0)
    expected = shares(table[STORED] / (2**bits - 1))
    for told in (16, bits):
        items = lut(table, 0, told)
        np.testing.assert_array_equal(with_table(items), expected)


def test_a_table_s_descriptor_may_say_0_and_begin_below_zero():
    table = np.arange(2**16)
    np.testing.assert_array_equal(
        with_table(lut(table, 0, 16, n=0)), shares(STORED / 65535)
    )
    expected = shares(STORED / 4095)
    for vr, first in (("SS", -96), ("US", 2**16 - 96)):
        table = np.clip(np.arange(-96, 4096), 0, None)
        np.testing.assert_array_equal(with_table(lut(table, first, 12, vr)), expected)


@pytest.mark.parametrize("n, bits", [(4000, 12), (4097, 12), (4096, 10), (0, 12)])
def test_a_table_that_its_descriptor_contradicts_is_one_line(n, bits):
    # cornerstoneWADOImageLoader 36, 45: images that appear white.
    with pytest.raises(PacxError, match="x.dcm: .*LUTDescriptor.*do not fit"):
        with_table(lut(RAMP, 0, bits, n=n))


def stretched(x):
    return shares((x - x.min()) / (x.max() - x.min()))


@pytest.mark.parametrize("after", [b"", b"\0\0\0\x14xml <a>boxes</a>\0"])
def test_a_whole_jp2_file_as_the_frame_is_decoded(after):
    jp2 = files.jpeg_2000(STORED, 12, codecformat="jp2") + after
    at = jp2.index(b"jp2c") - 4
    jp2 = jp2[:at] + (len(jp2) - len(after) - at).to_bytes(4, "big") + jp2[at + 4 :]
    data = files.data(files.encapsulated(jp2, files.J2K_LOSSLESS))
    np.testing.assert_array_equal(images.decode(data), stretched(STORED))


@pytest.mark.parametrize("signed", [False, True])
def test_a_stream_of_fewer_bits_than_bits_stored_is_read_by_its_own(signed):
    # pydicom 2012: "Bits Stored" 16, 14 in the JPEG 2000 data.
    x = STORED * 4 - 2**13 * signed
    ds = files.encapsulated(files.jpeg_2000(x, 14), files.J2K_LOSSLESS, x, 16)
    np.testing.assert_array_equal(images.decode(files.data(ds)), stretched(x))


def test_a_stream_with_an_overlay_in_its_high_bits_is_one_line():
    # pydicom 2260: the overlay would be the image.
    frame = files.jpeg_2000(STORED + 2**15, 16)
    ds = files.encapsulated(frame, files.J2K_LOSSLESS)
    assert "in BitsStored 12" in refusal(files.data(ds), "x.dcm")


def test_zeros_of_an_unfinished_download_are_one_line():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    for image in (pixels, np.stack([pixels] * 3, -1)):
        data = images.encode_jpeg(image)
        half = data[: len(data) // 2]
        assert "zeros instead of the image's end" in refusal(half + bytes(len(half)))
        np.testing.assert_array_equal(
            images.decode(data + bytes(64)), images.decode(data)
        )


@pytest.mark.parametrize("center", [-9000, 90000])
def test_a_window_beside_all_values_is_one_line(center):
    # A window that was meant for values before the rescale: a black image.
    data = files.made(STORED, WindowCenter=center, WindowWidth=10)
    assert "are one grey level by the window" in refusal(data)


def test_compressed_pixels_that_are_called_native_are_one_line():
    data = files.made(STORED)
    at = len(data) - 2 * STORED.size
    data = data[:at] + b"\xfe\xff\x00\xe0" + data[at + 4 :]
    assert "PixelData is compressed, but TransferSyntaxUID" in refusal(data)
