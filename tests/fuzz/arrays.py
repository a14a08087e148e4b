"""ECG records and arrays of numbers to damage, and how they are read."""

from __future__ import annotations

import io
import pathlib

import numpy as np

from data.ecg_array import ecg_array_dataset_builder
from pacx_jax.input import ecg, ecg_records, percentiles
from pacx_jax.run import embedding_cache
from tests.fuzz import damage
from tests.fuzz.readers import Reader

_SIGNAL = np.cumsum(np.random.default_rng(0).integers(-9, 10, (5000, 12)), 0)
_SIGNAL = _SIGNAL.astype(np.int16)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _header(fmt: str = "16") -> bytes:
    lines = ["r 12 500 5000"]
    lines += [f"r.dat {fmt} 1000/mV 16 0 0 0 0 {lead}" for lead in ecg.LEADS]
    text = "\n".join([*lines, "#Age: 61", "#Dx: A"]) + "\n"
    return text.replace(" 0 0 0 ", " 0 ").encode()


def draw_record(folder: pathlib.Path) -> None:
    """A WFDB record of format 16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "r.hea").write_bytes(_header())
    (folder / "r.dat").write_bytes(_SIGNAL.astype("<i2").tobytes())


def _npys() -> list[bytes]:
    one = _SIGNAL[:500].astype(np.float32)
    return [npy(one), npy(one[None]), npy(one.T.astype(float)), npy(one[None, None])]


def _read_ecg(path: pathlib.Path) -> None:
    for record in ecg_records.read(path):
        assert record.ecg.dtype == np.float64 and record.ecg.shape[1] == 12
        windows, _ = ecg.windows(record.ecg, record.fs, "first", True, record.name)
        assert np.isfinite(windows).all()


def _draw_array_set(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ecg.npy").write_bytes(npy(_SIGNAL[None].repeat(2, 0)))
    (folder / "labels.csv").write_text("patient_id,AF\n1,0\n2,1\n")


def _read_array_set(path: pathlib.Path) -> None:
    from data import prepare

    ecg_array_dataset_builder.open_array.cache_clear()  # another file of this name
    flags = ["ecg_array", f"--source={path.parent}", "--target=unused"]
    plan = ecg_array_dataset_builder.make_plan(path.parent, prepare.parse(flags))
    for rows in plan.splits.values():
        for row in rows:
            plan.make(row)


def _one(name: str, data: bytes):
    def draw(folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return draw


def _table() -> bytes:
    raw = np.random.default_rng(0).normal(size=(9, 3))
    return percentiles.fit(raw, (1, 2, 3)).to_bytes()


def _cache(path: pathlib.Path) -> None:
    table = embedding_cache.read(path, (4, 3))
    assert table.shape == (4, 3) and table.dtype.kind == "f"


READERS = {
    "wfdb header": Reader("r.hea", draw_record, _read_ecg, damage.of_text),
    "wfdb signal": Reader("r.dat", draw_record, _read_ecg),
    "npy": Reader("r.npy", _one("r.npy", _npys()[0]), _read_ecg, seeds=_npys),
    "npy of a set": Reader("ecg.npy", _draw_array_set, _read_array_set),
    "percentiles": Reader(
        "p.npz", _one("p.npz", _table()), lambda p: percentiles.load(p)
    ),
    "embedding cache": Reader(
        "c.npy", _one("c.npy", npy(np.ones((4, 3), np.float32))), _cache
    ),
}
