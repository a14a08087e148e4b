"""Reads 12-lead ECG records: WFDB records, and plain arrays in .npy files.

WFDB headers name their leads, rate and unit, and only what they say clearly is taken:
the `wfdb` package fills gaps with defaults (250 Hz, gain 200), which here are errors.
An array says nothing of itself; its rate and lead order are the caller's, and its scale
does not matter to `ecg.preprocess`, unless it is in volts. Letters: t samples, 12
leads in standard order.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from pacx_jax.errors import PacxError, install
from pacx_jax.input import ecg, ecg_arrays, folders

MV = {"mv": 1.0, "uv": 1e-3, "\u00b5v": 1e-3, "\u03bcv": 1e-3, "v": 1e3}
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
      PacxError: nothing is there.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return [path]
    if path.with_name(path.name + ".hea").is_file():  # WFDB's way to name a record
        return [path.with_name(path.name + ".hea")]
    if not path.is_dir():
        raise PacxError(f"{path}: no such file or folder; name one with ECG records")
    files = [
        p for p in sorted(path.rglob("*")) if not folders.hidden(p.relative_to(path))
    ]
    headers = {p.with_suffix("") for p in files if p.suffix.lower() == ".hea"}
    found = [
        p
        for p in files
        if p.suffix.lower() == ".hea"
        or (p.suffix.lower() in (".npy", ".mat") and p.with_suffix("") not in headers)
    ]
    if not found:
        raise PacxError(f"{path} holds no .hea or .npy files: name ECG records")
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
    elif path.suffix.lower() == ".mat":
        raise PacxError(
            f"{path}: a .mat file without a WFDB header ({path.stem}.hea); convert it: "
            "numpy.save('x.npy', scipy.io.loadmat('x.mat')['val'])"
        )
    else:
        raise PacxError(
            f"{path}: no ECG record; give a .hea or .npy file, or a signal file beside "
            "its header"
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
    fs = _check_header_text(path)
    stem = str(path.absolute())[: -len(path.suffix)]
    header = _call(path, wfdb.rdheader, stem)
    leads = _check_header(path, header, fs)
    raw = _call(path, wfdb.rdrecord, stem, channels=leads, physical=False)
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
    fields = (c.partition(":") for c in raw.comments)
    comments = {key.strip(): value.strip() for key, _, value in fields}
    return Record(str(path), signal, fs, comments)


def _call(path, function, *args, **kwargs):
    """What wfdb returns; whatever it raises on a bad file is one line."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PacxError(f"{path}: not a readable WFDB record ({reason})") from None


def _check_header_text(path: pathlib.Path) -> float:
    """The sampling rate; PacxError where wfdb would take a default without a word."""
    if "::" in str(path):  # fsspec, inside wfdb, takes that for a chain of addresses
        raise PacxError(f"{path}: '::' in the path; move the record elsewhere")
    try:
        with path.open("rb") as file:
            text = file.read(HEADER_BYTES + 1)
        lines = text.decode("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [x for x in map(str.strip, lines) if x and not x.startswith("#")]
    first = lines[0].split() if lines else []
    if len(text) > HEADER_BYTES or len(first) < 3 or not first[1].isdecimal():
        raise PacxError(
            f"{path}: not a WFDB header; its first line must be the record's name, "
            "number of signals, sampling rate and number of samples"
        )
    if "/" in first[0]:
        raise PacxError(f"{path}: record of several segments; convert it into one")
    if int(first[1]) != len(lines) - 1:
        raise PacxError(
            f"{path}: {len(lines) - 1} signal lines, but the first line says "
            f"{first[1]}: the header is truncated or damaged"
        )
    if len(first) > 3 and not 1 <= int(first[3] if first[3].isdecimal() else 0):
        raise PacxError(f"{path}: number of samples {first[3]!r}; give a count")
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
        if not re.fullmatch(r"\w[-\w.]*", words[0]):  # no other folder, no address
            raise PacxError(
                f"{path}: signal file {words[0][:80]!r} is no plain file name"
            )
    rate = re.split(r"[/(]", first[2])[0]
    try:
        fs = float(rate)
    except ValueError:
        raise PacxError(f"{path}: sampling rate {rate!r} is no number") from None
    ecg.check_rate(fs, str(path))
    return fs


def _check_header(path: pathlib.Path, header, fs: float) -> list[int]:
    """Where the twelve leads stand; PacxError if they cannot be read as mV."""
    if header.fs != fs:
        raise PacxError(f"{path}: sampling rate is not clear: {fs} or {header.fs} Hz")
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
    t = header.sig_len
    if t is None:
        t = size / frame
    if t > ecg.LONGEST:
        raise PacxError(
            f"{path}: {int(t)} samples; more than {ecg.LONGEST} are not read"
        )
    needed = math.ceil(t * frame) + (header.byte_offset[mine[0]] or 0)
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
