"""DICOM X-rays against the formulas of PS3.3 C.11, and what is refused."""

import builtins
import pathlib
import struct
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data import records
from pacx_jax.errors import PacxError
from pacx_jax.input import dicom_pixels, folders, images, names, sources
from tests.input import dicom_files as files

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
imagecodecs = pytest.importorskip(
    "imagecodecs", reason="the extra dicom is not installed"
)

STORED = files.STORED
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PUBLISHED = pathlib.Path(pydicom.__file__).parent / "data/test_files"


def grey(shares):
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def min_max(x):
    return grey((x - x.min()) / (x.max() - x.min()))


def decoded(*args, **elements):
    return images.decode(files.made(*args, **elements), "x.dcm")


def linear(x, c, w):
    """C.11.2.1.2.1, case by case as it stands there."""
    y = ((x - (c - 0.5)) / (w - 1) + 0.5) if w > 1 else np.zeros(x.shape)
    y = np.where(x <= c - 0.5 - (w - 1) / 2, 0, y)
    return grey(np.where(x > c - 0.5 + (w - 1) / 2, 1, y))


def test_without_a_window_the_range_of_the_image_is_stretched():
    np.testing.assert_array_equal(decoded(), min_max(STORED))
    assert decoded().dtype == np.uint8


@pytest.mark.parametrize(
    "bits, allocated", [(8, 8), (7, 8), (8, 16), (10, 16), (12, 16), (15, 16), (16, 16)]
)
@pytest.mark.parametrize("signed", [False, True])
def test_every_depth_signed_or_not(bits, allocated, signed):
    x = STORED * 16 % 2**bits - signed * 2 ** (bits - 1)
    x.flat[:2] = [x.min(), x.max()]
    out = decoded(x, bits, allocated=allocated)
    np.testing.assert_array_equal(out, min_max(x))


def test_unused_bits_such_as_old_overlays_are_ignored():
    ds = files.dataset()
    pixels = np.frombuffer(ds.PixelData, "<u2") | 0xA000
    ds.PixelData = pixels.tobytes()
    np.testing.assert_array_equal(images.decode(files.data(ds)), min_max(STORED))


@pytest.mark.parametrize("center, width", [(2048, 4096), (1000.5, 300), (40, 1)])
def test_linear_window(center, width):
    out = decoded(WindowCenter=center, WindowWidth=width)
    np.testing.assert_array_equal(out, linear(STORED, center, width))


def test_the_first_of_several_windows_counts():
    out = decoded(WindowCenter=[1000, 5], WindowWidth=[800, 6])
    np.testing.assert_array_equal(out, linear(STORED, 1000, 800))


def test_exact_and_sigmoid_windows():
    window = {"WindowCenter": 1000, "WindowWidth": 700}
    out = decoded(VOILUTFunction="LINEAR_EXACT", **window)
    np.testing.assert_array_equal(out, grey((STORED - 1000) / 700 + 0.5))
    out = decoded(VOILUTFunction="SIGMOID", **window)
    sigmoid = 1 / (1 + np.exp(-4 * (STORED - 1000) / 700))
    np.testing.assert_array_equal(out, grey(sigmoid))


def test_the_window_is_in_rescaled_units():
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-300"}
    out = decoded(WindowCenter=200, WindowWidth=900, **rescale)
    np.testing.assert_array_equal(out, linear(STORED * 0.5 - 300, 200, 900))
    negative = decoded(RescaleSlope="-2", RescaleIntercept="7")
    np.testing.assert_array_equal(negative, min_max(STORED * -2 + 7))


def test_modality_and_voi_tables_and_that_a_table_goes_before_a_window():
    voi = np.linspace(0, 1023, 1000).round().astype(int) ** 2 // 1023
    out = decoded(VOILUTSequence=files.lut(voi, 500, 10), WindowCenter=1, WindowWidth=2)
    index = np.clip(STORED - 500, 0, 999)
    np.testing.assert_array_equal(out, grey(voi[index] / 1023))
    modality = 60000 - 12 * np.arange(4096)
    out = decoded(
        ModalityLUTSequence=files.lut(modality, 0, 16),
        WindowCenter=30000,
        WindowWidth=20000,
    )
    np.testing.assert_array_equal(out, linear(modality[STORED], 30000, 20000))


def test_a_table_of_signed_values_begins_below_zero():
    x = STORED - 2048
    voi = np.arange(4096) * 16
    item = files.lut(voi, -2048, 16, vr="SS")
    for syntax in (files.EXPLICIT, files.IMPLICIT):
        out = decoded(x, VOILUTSequence=item, syntax=syntax)
        np.testing.assert_array_equal(out, grey(voi[x + 2048] / 65535))


def test_polarity_is_turned_once():
    upright = min_max(STORED)
    turned = grey((STORED.max() - STORED) / (STORED.max() - STORED.min()))
    for photometric, shape, expected in (
        ("MONOCHROME2", "IDENTITY", upright),
        ("MONOCHROME1", "IDENTITY", turned),
        ("MONOCHROME1", "INVERSE", turned),
        ("MONOCHROME2", "INVERSE", turned),
    ):
        out = decoded(PhotometricInterpretation=photometric, PresentationLUTShape=shape)
        np.testing.assert_array_equal(out, expected)
    out = decoded(PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(out, turned)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(photometric):
    x = STORED % 3000 + 500
    x[:, :4], x[0, 4:7] = 4095, 4090
    ds = files.dataset(x, PhotometricInterpretation=photometric)
    ds.add_new("PixelPaddingValue", "US", 4095)
    ds.add_new("PixelPaddingRangeLimit", "US", 4090)
    out = images.decode(files.data(ds))
    inside = x < 4090
    shares = (x - x[inside].min()) / (x[inside].max() - x[inside].min())
    shares = 1 - shares if photometric == "MONOCHROME1" else shares
    np.testing.assert_array_equal(out, np.where(inside, grey(shares), 0))
    ds = files.dataset(np.where(inside, x - 2000, -2000))
    ds.add_new("PixelPaddingValue", "SS", -2000)
    assert (images.decode(files.data(ds))[~inside] == 0).all()


def test_implicit_vr_and_files_without_preamble_or_meta_information():
    whole = files.made()
    assert whole[128:132] == b"DICM"
    expected = min_max(STORED)
    np.testing.assert_array_equal(images.decode(whole[132:]), expected)
    for syntax in (files.EXPLICIT, files.IMPLICIT):
        np.testing.assert_array_equal(decoded(syntax=syntax), expected)
        bare = files.made(syntax=syntax)
        bare = bare[bare.index(b"\x08\x00\x16\x00") :]
        np.testing.assert_array_equal(images.decode(bare), expected)


@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("signed", [False, True])
def test_rle_and_jpeg_2000_and_lossless_jpeg_keep_every_value(fragments, signed):
    x = STORED - 2048 * signed
    pattern = x & 4095
    for syntax, frame in (
        (files.RLE, files.rle(pattern)),
        (files.J2K_LOSSLESS, files.jpeg_2000(x, 12)),
        (files.J2K, files.jpeg_2000(x, 12)),
        (files.J2K, files.jpeg_2000(x, 12, codecformat="jp2")),  # in a JP2 file
        (files.LOSSLESS_SV1, files.lossless_jpeg(pattern, 12)),
        (files.LOSSLESS, files.lossless_jpeg(pattern, 12, predictor=6)),
    ):
        ds = files.encapsulated(frame, syntax, x, fragments=fragments)
        assert ds.PixelRepresentation == signed
        np.testing.assert_array_equal(images.decode(files.data(ds)), min_max(x))


@pytest.mark.parametrize("signed", [False, True])
def test_jpeg_ls_of_16_bits(signed):
    x = STORED * 16 - 2**15 * signed
    pattern = (x & 65535).astype(np.uint16)
    for syntax, most in ((files.LS, 0), (files.LS_NEAR, 2)):
        frame = imagecodecs.jpegls_encode(pattern, level=most)
        ds = files.encapsulated(frame, syntax, x, 16, WindowCenter=0, WindowWidth=9000)
        _, stored, values = dicom_pixels.read(files.data(ds))
        assert np.abs(values[stored] - x).max() <= most


def test_extended_jpeg_of_12_bits():
    smooth = np.add.outer(np.arange(64) * 30, np.arange(80) * 20)
    frame = imagecodecs.jpeg8_encode(
        smooth.astype(np.uint16), level=98, bitspersample=12
    )
    ds = files.encapsulated(frame, files.EXTENDED, smooth)
    out = images.decode(files.data(ds)).astype(int)
    assert np.abs(out - min_max(smooth)).max() <= 1


def test_a_sign_that_contradicts_the_codestream_is_the_element_s():
    x = STORED - 2048
    ds = files.encapsulated(files.jpeg_2000(x & 4095, 12), files.J2K_LOSSLESS, x)
    np.testing.assert_array_equal(images.decode(files.data(ds)), min_max(x))


@pytest.mark.parametrize("syntax", [files.BASELINE, files.EXTENDED])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_8_bits_is_as_pil_decodes_it(syntax, progressive):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8) + 20
    frame = files.jpeg(smooth, quality=95, progressive=progressive)
    ds = files.encapsulated(frame, syntax, smooth, 8, allocated=8)
    ds.WindowCenter, ds.WindowWidth = 128, 256
    out = images.decode(files.data(ds)).astype(int)
    assert np.abs(out - images.decode(frame)).max() <= 1


def test_lossy_jpeg_2000_is_near():
    frame = files.jpeg_2000(STORED, 12, level=45)
    ds = files.encapsulated(frame, files.J2K)
    out = images.decode(files.data(ds)).astype(int)
    assert 0 < np.abs(out - min_max(STORED)).mean() < 8


_MR = {(0, 31): 422, (31, 0): 366, (-1, -1): 862, (60, 35): 2053}
_12_BITS = {(420, 140): 244, (230, 120): 95}
VALUES = {
    "MR_small.dcm": _MR,
    "MR_small_implicit.dcm": _MR,
    "MR_small_RLE.dcm": _MR,
    "MR_small_jpeg_ls_lossless.dcm": _MR,
    "MR_small_jp2klossless.dcm": _MR,
    "JPGExtended.dcm": _12_BITS,
    "JPEG-lossy.dcm": _12_BITS,
    "J2K_pixelrep_mismatch.dcm": {(0, 0): -2000, (47, 279): 621, (328, 106): -377},
}


@pytest.mark.parametrize("name", VALUES)
def test_files_that_pydicom_publishes_have_the_values_that_its_tests_state(name):
    if not (PUBLISHED / name).exists():
        pytest.skip(f"this pydicom has no {name}")
    _, stored, values = dicom_pixels.read((PUBLISHED / name).read_bytes())
    assert {at: values[stored[at]] for at in VALUES[name]} == VALUES[name]


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "CT_small.dcm", "examples_overlay.dcm"]
)
def test_grey_levels_are_those_of_pydicom_s_own_chain(name):
    from pydicom.pixels import apply_modality_lut, apply_windowing

    ds = pydicom.dcmread(PUBLISHED / name)
    x = apply_modality_lut(ds.pixel_array, ds)
    y = (x - x.min()) / (x.max() - x.min())
    if "WindowCenter" in ds:
        y = apply_windowing(x, ds)
        # It maps onto the whole range of stored values after the rescale.
        bits, slope = ds.BitsStored, float(ds.get("RescaleSlope", 1))
        low = -(2 ** (bits - 1)) if ds.PixelRepresentation else 0
        ends = np.array([low, low + 2**bits - 1]) * slope
        ends += float(ds.get("RescaleIntercept", 0))
        y = (y - ends[0]) / (ends[1] - ends[0])
    out = images.decode(PUBLISHED / name)
    assert np.abs(out.astype(int) - grey(y)).max() <= 1


def broken(**elements):
    return lambda: files.made(**elements)


def cut_frame():
    frame = files.jpeg_2000(STORED, 12)
    return files.data(files.encapsulated(frame[: len(frame) // 2], files.J2K))


def larger_frame(kind):
    """A compressed image that is larger than Rows and Columns say."""
    x = np.tile(STORED, (2, 2))
    if kind == "jpeg":
        frame, syntax = files.lossless_jpeg(x, 12), files.LOSSLESS
    else:
        frame, syntax = files.jpeg_2000(x, 12), files.J2K
    return files.data(files.encapsulated(frame, syntax))


def overlong_rle():
    frame = bytearray(files.rle(STORED))
    struct.pack_into("<I", frame, 8, 2**31)
    return files.data(files.encapsulated(bytes(frame), files.RLE))


def relabelled(syntax):
    """A file that claims another transfer syntax than its own, padded alike."""
    whole = files.made()
    old = files.EXPLICIT.encode() + b"\0"
    i = whole.index(old, 132)
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    length = struct.pack("<H", len(new))
    return whole[: i - 2] + length + new + whole[i + len(old) :]


REFUSED = {
    "colour": (broken(PhotometricInterpretation="RGB", SamplesPerPixel=3), "'RGB'.*3"),
    "ybr": (broken(PhotometricInterpretation="YBR_FULL_422"), "'YBR_FULL_422'.*grey"),
    "palette": (broken(PhotometricInterpretation="PALETTE COLOR"), "'PALETTE COLOR'"),
    "no photometric": (broken(PhotometricInterpretation=None), "Photometric"),
    "frames": (broken(NumberOfFrames=2), "NumberOfFrames 2: one grey frame"),
    "no pixels": (broken(PixelData=None), "PixelData is absent"),
    "no rows": (broken(Rows=None), "Rows is absent"),
    "zero rows": (broken(Rows=0), "Rows 0 x Columns 33: 1 to 50000000"),
    "bomb": (broken(Rows=60000, Columns=60000), "Rows 60000 x Columns 60000: 1 to"),
    "short": (broken(Rows=37), "PixelData has 2376 bytes.*Rows 37"),
    "depth": (broken(BitsAllocated=8, BitsStored=8, HighBit=7), "2376 bytes.* 1188"),
    "32 bits": (broken(BitsAllocated=32), "BitsAllocated 32"),
    "stored": (broken(BitsStored=17), "BitsAllocated 16, BitsStored 17,"),
    "high bit": (broken(HighBit=15), "BitsStored 12, HighBit 15: the low"),
    "no width": (broken(WindowCenter=5), "WindowWidth is absent"),
    "width": (broken(WindowCenter=5, WindowWidth=0), "Window Width.*equal to 1"),
    "function": (
        broken(WindowCenter=5, WindowWidth=3, VOILUTFunction="LOG"),
        "VOI LUT Function value 'LOG'",
    ),
    "slope": (broken(RescaleSlope=0), "RescaleSlope 0"),
    "shape": (broken(PresentationLUTShape="LIN OD"), "PresentationLUTShape 'LIN OD'"),
    "table": (
        broken(VOILUTSequence=files.lut([1, 2], 0, 17)),
        "LUTDescriptor .2, 0, 17., LUTData 4",
    ),
    "syntax": (
        lambda: relabelled("1.2.840.10008.1.2.4.100"),
        "TransferSyntaxUID.*4.100",
    ),
    "big endian": (lambda: relabelled(files.BIG_ENDIAN), "Big Endian.*dcmconv"),
    "deflated": (lambda: relabelled(files.DEFLATED), "Deflated.*dcmconv"),
    "cut frame": (cut_frame, "cut off"),
    "larger jpeg": (lambda: larger_frame("jpeg"), "72 rows, 66 columns.*Rows 36"),
    "larger j2k": (lambda: larger_frame("j2k"), "72 rows, 66 columns.*Rows 36"),
    "overlong rle": (overlong_rle, "PixelData: .*packbits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_with_file_field_and_value(case):
    make, pattern = REFUSED[case]
    with pytest.raises(PacxError, match=f"x.dcm: .*{pattern}") as error:
        images.decode(make(), "x.dcm")
    assert "\n" not in str(error.value) and files.SECRET not in str(error.value)


def test_a_cut_file_is_refused_wherever_it_is_cut():
    whole = files.made(VOILUTSequence=files.lut(np.arange(300), 0, 16))
    for n in range(132, len(whole) - 1, 37):
        with pytest.raises(PacxError, match="x.dcm: "):
            images.decode(whole[:n], "x.dcm")


def fuzz_bases():
    """Files of every kind whose bytes are worth changing."""
    tables = {"VOILUTSequence": files.lut(np.arange(64) * 9, 5, 10)}
    smooth = (STORED // 16).astype(np.uint8)
    yield files.made(**tables)
    yield files.made(syntax=files.IMPLICIT, WindowCenter=100, WindowWidth=20)
    for syntax, frame in (
        (files.RLE, files.rle(STORED)),
        (files.J2K, files.jpeg_2000(STORED, 12)),
        (files.LOSSLESS, files.lossless_jpeg(STORED, 12)),
    ):
        yield files.data(files.encapsulated(frame, syntax))
    frame = files.jpeg(smooth)
    yield files.data(files.encapsulated(frame, files.BASELINE, smooth, 8, allocated=8))


BASES = list(fuzz_bases())


@hypothesis.settings(max_examples=400, deadline=20_000, derandomize=True)
@hypothesis.given(
    st.integers(0, len(BASES) - 1),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_damaged_files_give_an_image_or_one_line(which, changes, cut):
    damaged = bytearray(BASES[which])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    if cut is not None:
        del damaged[cut % len(damaged) :]
    try:
        out = images.decode(bytes(damaged), "x.dcm")
    except PacxError as error:
        assert "x.dcm" in str(error) and "\n" not in str(error)
    else:
        assert out.dtype == np.uint8 and out.ndim in (2, 3)


def test_the_format_is_read_from_bytes_not_from_the_name(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(files.made())
    np.testing.assert_array_equal(images.decode(path), min_max(STORED))
    png = tmp_path / "y.dcm"
    png.write_bytes(images.encode_png(min_max(STORED)))
    np.testing.assert_array_equal(images.decode(png), min_max(STORED))
    for other in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"P5 3 3 255", b""):
        assert not dicom_pixels.is_dicom(other)


def test_folders_preparation_and_embedding_read_the_same_pixels(tmp_path):
    (tmp_path / "a.dcm").write_bytes(files.made())
    (tmp_path / "b.DICOM").write_bytes(files.made(syntax=files.IMPLICIT))
    assert names.find(tmp_path).paths == ["a.dcm", "b.DICOM"]
    spec = folders.FolderSpec(path=str(tmp_path), val_fraction=0)
    example = sources.FolderSource(spec, "train")[0]
    np.testing.assert_array_equal(images.decode(example["image"]), min_max(STORED))
    for size in (0, 16, 500):
        kept = records.store_image(example["image"], size, "a.dcm")
        assert kept[:4] == b"\x89PNG" and files.SECRET.encode() not in kept
        expected = images.shrink(min_max(STORED), size or 500)
        np.testing.assert_array_equal(images.decode(kept), expected)


@pytest.mark.parametrize("package", ["pydicom", "imagecodecs"])
def test_a_missing_package_is_named(package, monkeypatch):
    for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    find = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PacxError, match=f"x.dcm: .*dicom.*{package}.*pip install"):
        images.decode(BASES[3], "x.dcm")
