"""Reads 12-lead ECG records: WFDB records, and plain arrays in .npy files.

WFDB headers name their leads, rate and unit, and only what they say clearly is taken:
the `wfdb` package fills gaps with defaults (250 Hz, gain 200), which here are errors.
It stops at dates and names that published sets write in their own ways, and reads uV
with the Greek letter as V, so it is given a header without them. An array says nothing
of itself; its rate and lead order are the caller's, and its scale does not matter to
`ecg.preprocess`, unless it is in volts. Letters: t samples, 12 leads in standard order.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError, install, one_line
from pacx_jax.input import ecg, ecg_arrays
from pacx_jax.input.names import hidden, waits

MV = {"mv": 1.0, "uv": 1e-3, "v": 1e3}
# Bytes a sample, of the WFDB formats whose length can be told from the header.
FORMATS = {"16": 2, "24": 3, "32": 4, "80": 1, "212": 1.5}
HEADER_BYTES = 2**20
_GAIN = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?(\(-?\d+\))?(/\S+)?")
_SPELLINGS = {"DI": "I", "DII": "II", "DIII": "III"}


@dataclasses.dataclass(frozen=True)
class Record:
    """One recording.

    Attributes:
      name: its file, and `[i]` where the file holds several.
      ecg: float64 (t, 12) in standard lead order; mV if it is from a WFDB record. NaN
        where the file says that a sample is missing.
      fs: sampling rate in Hz.
      comments: the header's comment fields, such as {"Age": "74", "Dx": "AF"}.
    """

    name: str
    ecg: np.ndarray
    fs: float
    comments: dict[str, str]


def find(path: str | os.PathLike) -> list[pathlib.Path]:
    """The record files at `path`, sorted: itself, or all under a folder.

    A folder's records are its .hea files, and the .npy and .mat files that have no
    header of their name (`read` refuses these .mat files). Hidden files do not count.

    Raises:
      PacxError: nothing is there, or a pipe or device among the records.
    """
    if not os.fspath(path):  # which would be the working directory
        raise PacxError("the path of the ECGs is empty: name records or a folder")
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if (header := pathlib.Path(f"{path}.hea")).is_file():  # WFDB's way to name a record
        return [header]
    if not path.is_dir():
        raise PacxError(f"{path}: no such file or folder; name one with ECG records")
    paths = [
        p
        for p in sorted(path.rglob("*"))
        if not any(map(hidden, p.relative_to(path).parts))
    ]
    headers = {p.with_suffix("") for p in paths if p.suffix.lower() == ".hea"}
    found = [
        p
        for p in paths
        if p.suffix.lower() == ".hea"
        or (p.suffix.lower() in (".npy", ".mat") and p.with_suffix("") not in headers)
    ]
    if not found:
        raise PacxError(f"{path} holds no .hea or .npy files: name ECG records")
    if odd := [p for p in found if waits(p)]:
        raise PacxError(f"{odd[0]}: a pipe, socket or device, no file; remove it")
    return found


def header_of(path: pathlib.Path) -> pathlib.Path | None:
    """The WFDB header that is, or lies beside, a file; None of a plain array."""
    beside = path if path.suffix.lower() == ".hea" else path.with_suffix(".hea")
    return beside if beside.is_file() else None


def read(
    path: str | os.PathLike, fs: float = 500.0, lead_order: str = "standard"
) -> Iterator[Record]:
    """Reads a file's records: one, or the rows of an array of many.

    Args:
      path: a WFDB header, or its signal file; or a .npy array (t, 12), (12, t),
        (n, t, 12) or (n, 1, t, 12).
      fs: sampling rate of arrays; a header tells its own.
      lead_order: "standard" or "mimic", of arrays.

    Raises:
      PacxError: an unreadable, truncated or damaged file, or one that does not say
        clearly which leads it holds, at which rate, in which unit.
    """
    path = pathlib.Path(path)
    if found := header_of(path):
        yield read_wfdb(found)
    elif path.suffix.lower() == ".npy":
        for name, array in ecg_arrays.read(path, fs, lead_order):
            yield Record(name, array, float(fs), {})
    else:
        raise PacxError(
            f"{path}: no .npy, and without a WFDB header ({path.stem}.hea); convert a "
            ".mat: numpy.save('x.npy', scipy.io.loadmat('x.mat')['val'])"
        )


def read_wfdb(path: pathlib.Path) -> Record:
    """Reads a single-segment WFDB record by its header file, into mV.

    The leads are found by name, whatever their order; others are left out. A sample
    that the format marks as missing (-32768 in format 16) becomes NaN.
    """
    try:
        import wfdb
    except (ImportError, OSError) as error:  # OSError: soundfile without its library
        raise PacxError(
            f"{path}: WFDB records need the package wfdb ({error}): {install('ecg')}"
        ) from None
    text = files.read_bytes(path, HEADER_BYTES + 1).decode(errors="replace")
    fs, lines = _check_text(path, text)
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "x.hea").write_text("\n".join(lines))
        header = _call(path, wfdb.rdheader, f"{folder}/x")
        leads = _check_header(path, header)
        for file in {header.file_name[i] for i in leads}:
            at = (path.parent / file).absolute()
            _call(path, os.symlink, at, f"{folder}/{file}")
        raw = _call(path, wfdb.rdrecord, f"{folder}/x", channels=leads, physical=False)
    if raw.d_signal is None or raw.d_signal.shape != (raw.sig_len, 12):
        raise PacxError(f"{path}: the signal file does not hold 12 equally long leads")
    for lead, told, is_ in zip(
        ecg.LEADS, raw.checksum, raw.calc_checksum(), strict=True
    ):
        if told is not None and (told - is_) % 65536:
            raise PacxError(
                f"{path}: checksum of lead {lead} is {is_}, but the header says {told}:"
                " the file is damaged, get it again"
            )
    signal = _call(path, raw.dac, return_res=64)
    signal *= [MV[unit.lower()] for unit in raw.units]
    return Record(str(path), signal, fs, dict(comments(text)))


def comments(text: str) -> list[tuple[str, str]]:
    """A header's comments as fields: `#key: value`, or `# <key>: value <key>: ...`."""
    found = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            line = line.lstrip("# \t")
            several = line[:1] == "<" and re.findall("<([^<>]+)>:?([^<>]*)", line)
            found += several or [line.partition(":")[::2]]
    return [(key.strip(), value.strip()) for key, value in found]


def _call(path, function, *args, **kwargs):
    """What wfdb returns; whatever it raises on a bad file is one line."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        reason = f"not a readable WFDB record ({one_line(error)})"
        raise PacxError(f"{path}: {reason}") from None


def _check_text(path: pathlib.Path, text: str) -> tuple[float, list[str]]:
    """The sampling rate, and the header's lines without what wfdb may stop at.

    PacxError where wfdb would take a default without a word.
    """
    lines = [x for x in map(str.strip, text.splitlines()) if x and x[0] != "#"]
    try:
        name, n, rate, *rest = lines[0].split()
        n, fs = int(n), float(re.split(r"[/(]", rate)[0])
        samples = [int(count) for count in rest[:1]]
        if len(text) > HEADER_BYTES or min(samples, default=1) < 1:
            raise ValueError
    except (IndexError, ValueError):
        raise PacxError(
            f"{path}: not a WFDB header; its first line must be the record's name, "
            "number of signals, sampling rate and number of samples"
        ) from None
    ecg.check_rate(fs, str(path))
    if "/" in name and all(len(line.split()) == 2 for line in lines[1:]):
        raise PacxError(f"{path}: record of several segments; convert it into one")
    if n != len(lines) - 1:
        raise PacxError(
            f"{path}: {len(lines) - 1} signal lines, but the first line says "
            f"{n}: the header is truncated or damaged"
        )
    clean = [f"x {n} {fs} {' '.join(map(str, samples))}"]
    for line in lines[1:]:
        words = line.split()
        if len(words) < 3 or not _GAIN.fullmatch(words[2]):
            raise PacxError(
                f"{path}: signal line {line[:80]!r} has no gain, such as 1000/mV; "
                "correct the header"
            )
        gain = float(re.split(r"[(/]", words[2])[0])
        if not math.isfinite(gain) or gain == 0:
            raise PacxError(f"{path}: signal with gain {words[2]}: not calibrated")
        # Beside its header, wherever it was written: no other folder, no address.
        if not re.fullmatch(r"(\w[-\w.]*/)*\w[-\w.]*", words[0]):
            raise PacxError(
                f"{path}: signal file {words[0][:80]!r} is no plain file name"
            )
        line = line.replace(words[0], words[0].rpartition("/")[2], 1)
        clean.append(re.sub("[\u00b5\u03bc]", "u", line))
    return fs, clean


def _check_header(path: pathlib.Path, header) -> list[int]:
    """Where the twelve leads stand; PacxError if they cannot be read as mV."""
    names = [_lead(name) for name in header.sig_name]
    twice = sorted({n for n in names if n in ecg.LEADS and names.count(n) > 1})
    missing = [lead for lead in ecg.LEADS if lead not in names]
    if missing or twice:
        wrong = f"no lead(s) {', '.join(missing)}" if missing else f"{twice[0]} twice"
        held = ", ".join(map(str, header.sig_name))[:200]
        raise PacxError(
            f"{path}: {wrong} among the signals {held}: all of "
            f"{' '.join(ecg.LEADS)} are needed"
        )
    leads = [names.index(lead) for lead in ecg.LEADS]
    for i in leads:
        lead, unit = names[i], header.units[i] or ""
        if unit.lower() not in MV:
            raise PacxError(f"{path}: lead {lead} in {unit!r}; it must be mV, uV or V")
        if header.samps_per_frame[i] not in (None, 1):
            raise PacxError(f"{path}: lead {lead} has several samples a frame")
        if header.fmt[i] not in FORMATS:
            raise PacxError(
                f"{path}: lead {lead} in format {header.fmt[i]}; it must be one of "
                f"{', '.join(FORMATS)}"
            )
    for file in sorted({header.file_name[i] for i in leads}):
        _check_size(path, header, file)
    return leads


def _check_size(path: pathlib.Path, header, file: str) -> None:
    try:
        size = (path.parent / file).stat().st_size
    except OSError:
        raise PacxError(f"{path}: its signal file {file} is not there") from None
    mine = [i for i, other in enumerate(header.file_name) if other == file]
    if any(header.fmt[i] not in FORMATS for i in mine):
        raise PacxError(f"{path}: {file} holds signals of formats that are not read")
    frame = sum(FORMATS[header.fmt[i]] for i in mine)
    offset = header.byte_offset[mine[0]] or 0
    t = (size - offset) / frame if header.sig_len is None else header.sig_len
    if t > ecg.LONGEST:
        raise PacxError(
            f"{path}: {int(t)} samples; more than {ecg.LONGEST} are not read"
        )
    needed = math.ceil(t * frame) + offset
    if size < needed:
        raise PacxError(
            f"{path}: {file} has {size} bytes, but {int(t)} samples need {needed}: it "
            "is truncated, get it again"
        )


def _lead(name: str | None) -> str:
    """The standard name of a lead, or the name as it is."""
    plain = re.sub(r"^(MDC_ECG_LEAD_|(ECG|LEAD)[ _]+)", "", (name or "").upper())
    plain = _SPELLINGS.get(plain, plain)
    return {lead.upper(): lead for lead in ecg.LEADS}.get(plain, name or "")
