"""What soaks found, each as it was made, and files that claim to be huge."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from pacx_jax.errors import PacxError
from tests.fuzz import images
from tests.fuzz import readers as fuzz
from tests.input import dicom_files as dicom

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
pytest.importorskip("wfdb", reason="the extra ecg is not installed")


def refuse(name, folder, change):
    """Applies `change` to a reader's sound bytes; they must then be refused."""
    check(name, folder, change, "refused")


def check(name, folder, change, found):
    reader = fuzz.readers()[name]
    reader.draw(folder)
    changed = change((folder / reader.file).read_bytes())
    assert fuzz.check(reader, folder, changed) == found


def put(**fields):
    """Sets fields of a JSON file; `a__b` is b within a."""

    def change(data: bytes) -> bytes:
        tree = json.loads(data)
        for name, value in fields.items():
            node, (*above, last) = tree, name.split("__")
            for part in above:
                node = node[part]
            node[last] = value
        return json.dumps(tree).encode()

    return change


def elsewhere(data: bytes) -> bytes:
    """features.json that names a class of another module, which TFDS would import."""
    return data.replace(
        b"tensorflow_datasets.core.features.image_feature", b"antigravity"
    )


def safetensors_of(header: dict):
    text = json.dumps(header).encode()
    return lambda _: len(text).to_bytes(8, "little") + text


FAULTS = {
    "numpy's header reader": ("npy", lambda b: b[:60] + b"\0" * 50),
    "archive as npy": ("npy", lambda _: zipped({"a.npy": b"x"})),
    "objects in npy": ("embedding cache", lambda b: b.replace(b"<f4", b"|O8")),
    "wfdb's baseline": (
        "wfdb header",
        lambda b: b.replace(b"16 0 0 aVL", b"16 " + b"9" * 400 + b" 0 aVL")),
    "column with a line break": (
        "labels.csv", lambda b: b.replace(b"path,", b'"a\nb",').replace(b".png", b"")),
    "path out of the folder": (
        "labels.csv", lambda b: b.replace(b"a.png", b"../../../etc/passwd")),
    "too long a name": ("pacx.json", put(files={"9" * 400: 1})),
    "file out of the folder": ("pacx.json", put(files={"../pacx.json": 1})),
    "label names that are none": ("pacx.json", put(label_names=7)),
    "splits that are none": ("pacx.json", put(splits=0.5)),
    "class of another module": ("features.json", elsewhere),
    "records in another folder": (
        "dataset_info.json",
        lambda b: b.replace(b"{DATASET}-", b"../{DATASET}-")),
    "damaged lines": ("quarantine.jsonl", lambda _: b'{"split": null}\n'),
    "runs that are none": ("patients.json", put(runs=[])),
    "hashes that are none": (
        "patients.json", put(runs=[{"run": "a", "namespace": "b", "hashes": 3}])),
    "best of no step": ("best.json", put(step=None)),
    "config with dots": ("config.json of a run", put(data={"a.b": 1})),
    "infinite heads": (
        "config.json of Hugging Face", put(num_attention_heads=float("inf"))),
    "unknown kind": ("config.json of a vit folder", put(kind=[])),
    "a billion blocks": (
        "config.json of a vit folder", put(architecture__depth=10**9)),
    "a billion ECG blocks": (
        "config.json of a ecg_net1d folder", put(architecture__blocks=[10**9, 1])),
    "a million pixels a side": (
        "config.json of a vit folder", put(architecture__image_size=2**20)),
    "99 dimensions": ("heads.safetensors", safetensors_of(
        {"a": {"dtype": "F32", "shape": [1] * 99, "data_offsets": [0, 4]}})),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_the_soak_found_is_one_line(what, tmp_path):
    name, change = FAULTS[what]
    refuse(name, tmp_path / "set", change)


@pytest.mark.parametrize(
    "name", [k for k, r in fuzz.readers().items() if ".json" in k and "jsonl" not in k]
)
def test_json_nested_too_deeply_is_one_line(name, tmp_path):
    found = "read" if name.endswith(" of a report") else "refused"  # shown as damaged
    check(name, tmp_path / "set", lambda _: b"[" * 100_000, found)


# Files that claim to be huge.


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def huge_png(_):
    data = bytearray(images.pngs()[1])
    data[16:24] = struct.pack(">2I", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def huge_jpeg(_):
    data = bytearray(images.jpegs()[0])
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">2H", 65500, 65500)
    return bytes(data)


def many_scans(_):
    stream = io.BytesIO()
    Image.new("L", (512, 512)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + 300 * scan + b"\xff\xd9"


def jpeg_2000(rows, columns, block=4, precinct=None, tile=None):
    """A DICOM file whose codestream names sizes of its own."""
    frame = bytearray(dicom.jpeg_2000(dicom.STORED, 12))
    struct.pack_into(">2I", frame, 8, columns, rows)
    struct.pack_into(">2I", frame, 24, *(tile or (columns, rows)))
    at = frame.index(b"\xff\x52")
    coding = frame[at : at + 2 + struct.unpack_from(">H", frame, at + 2)[0]]
    length = len(coding)
    coding[10:12] = bytes([block, block])
    if precinct is not None:
        coding = coding[:14] + bytes([precinct])
        coding[4], coding[9] = coding[4] | 1, 0
        struct.pack_into(">H", coding, 2, len(coding) - 2)
    frame[at : at + length] = coding
    dataset = dicom.encapsulated(bytes(frame), dicom.J2K)
    dataset.Rows, dataset.Columns = rows, columns
    return dicom.data(dataset)


def npy_of(*shape):
    """A header alone."""
    stream = io.BytesIO()
    form = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, form)
    return lambda _: stream.getvalue() + bytes(4096)


BOMBS = {
    "png": ("png", huge_png),
    "jpeg": ("jpeg", huge_jpeg),
    "jpeg of many scans": ("jpeg", many_scans),
    "dicom": ("dicom", lambda _: dicom.data(dicom.dataset(Rows=60000, Columns=60000))),
    "precincts of a pixel": ("dicom", lambda _: jpeg_2000(1500, 1500, precinct=0)),
    "code blocks of 4 x 4": ("dicom", lambda _: jpeg_2000(7000, 7000, block=0)),
    "tiles that are not there": (
        "dicom", lambda _: jpeg_2000(7000, 7000, tile=(40, 40))),
    "npy": ("npy", npy_of(10**12, 12)),
    "npy of a set": ("npy of a set", npy_of(2**40, 5000, 12)),
    "embedding cache": ("embedding cache", npy_of(2**40, 3)),
    "wfdb": ("wfdb header", lambda b: b.replace(b"500 5000", b"500 1000000000000")),
    "percentiles": ("percentiles", lambda _: zipped({"values.npy": bytes(2**26 + 1)})),
    "safetensors": ("safetensors", lambda b: (2**60).to_bytes(8, "little") + b[8:]),
    "safetensors shape": ("safetensors", safetensors_of(
        {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**60]}})),
    "pt": ("pt", lambda _: zipped({"a/data.pkl": b"\x80\2}.", "a/0": bytes(2**24)})),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_what_claims_to_be_huge_costs_nothing(what, tmp_path, monkeypatch):
    name, change = BOMBS[what]
    if name == "pt":
        pytest.importorskip("torch")
    monkeypatch.setattr(fuzz, "MEMORY", 320 << 20)
    monkeypatch.setattr(fuzz, "SECONDS", 10)
    refuse(name, tmp_path / "set", change)


def test_gzipped_line_without_an_end_is_not_held_in_memory(tmp_path):
    import gzip

    from data.mimic_labs import events

    path = tmp_path / "labevents.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(b"itemid\n")
        for _ in range(64):
            file.write(bytes(2**20).replace(b"\0", b","))
    with fuzz.measured() as peak, pytest.raises(PacxError, match="a line of more than"):
        list(events.rows(path, ("itemid",)))
    assert peak() < 32 << 20


def test_the_largest_image_that_is_read_takes_what_the_documents_say(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (10_000, 5_000)).save(path, compress_level=1)
    reader = fuzz.readers()["png"]
    with fuzz.timed(60), fuzz.measured() as peak:
        reader.read(path)
    assert peak() < 300 << 20


def test_messages_are_one_line_without_control_characters():
    error = PacxError("a\nb\r\n\x1b[31mred\x85c\u2028d")
    assert str(error) == "a b \\x1b[31mred c d"
    assert len(str(PacxError("x" * 10**6))) == 3000
    np.testing.assert_equal(str(PacxError("Röntgen µV")), "Röntgen µV")


def test_flag_that_is_no_utf8_is_named(tmp_path):
    refuse("flags", tmp_path, lambda data: data + b" --config.seed\xff=3")
