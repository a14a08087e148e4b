"""Preparations that are killed or fail go on from their finished shards."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from data import journal, parallel, prepare, published, records, shards
from data.folder import folder_dataset_builder
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import images, sources

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = 5  # a shard


@pytest.fixture
def films(tmp_path, monkeypatch):
    """18 images in two splits, of which the first has three shards."""
    monkeypatch.setattr(shards, "LEAST", ROWS)
    monkeypatch.setattr(parallel, "_CHUNK", 2)
    root = tmp_path / "films"
    root.mkdir()
    rows = ["path,patient_id,y,split"]
    for i in range(18):
        grey = np.random.default_rng(i).integers(0, 255, (6, 5), dtype=np.uint8)
        (root / f"{i:02d}.png").write_bytes(images.encode_png(grey))
        rows.append(f"{i:02d}.png,p{i // 2},{i % 2},{'train' if i < 14 else 'val'}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def run(films, tmp_path, capsys):
    """Prepares them into `out`: (exit code, JSON of the last line, stderr)."""

    def command(*flags):
        argv = ["folder", f"--source={films}", f"--target={tmp_path / 'out'}"]
        code = prepare.main([*argv, "--workers=1", *flags])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 0 and not lines or code == 2 and len(lines) == 1
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err

    return command


@pytest.fixture
def whole(run, tmp_path):
    """Contents of what an uninterrupted preparation writes to `out`."""
    assert run()[0] == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    return contents(tmp_path / "whole")


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def fail_at(monkeypatch, owner, name, call, error):
    """Makes a function fail at a call; those of it that came so far are counted."""
    function, calls = getattr(owner, name), []

    @functools.wraps(function)
    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return calls


FULL = RuntimeError("write() failed: No space left on device; at byte 307200")
FAILURES = {
    "full disk, in a record": (records.RecordBuilder, "serialize", 12, FULL),
    "full disk, at a sync": (files, "sync", 9, OSError(28, os.strerror(28))),
    "full disk, at the end": (shards.Preparation, "describe", 1, FULL),
    "interrupted": (published.MakeImage, "__call__", 12, KeyboardInterrupt()),
}


@pytest.mark.parametrize("case", FAILURES)
def test_after_a_failure_the_next_call_goes_on_to_the_same_bytes(
    whole, run, tmp_path, monkeypatch, case
):
    with monkeypatch.context() as patch:
        fail_at(patch, *FAILURES[case])
        code, _, err = run()
    kept = 18 if case.endswith("end") else 2 * ROWS
    assert code == 2 and not (tmp_path / "out").exists()
    assert f"{kept} examples are kept in {tmp_path / '.out.partial'}" in err
    assert ("interrupted" if case == "interrupted" else "no space left") in err
    code, summary, err = run()
    assert code == 0 and summary["made"]["examples"] == 18 - kept
    assert contents(tmp_path / "out") == whole
    assert not (tmp_path / ".out.partial").exists()
    if case == "interrupted":
        assert "10/14" in err  # the bar goes on from there


def test_shards_are_kept_only_while_they_are_what_they_were(run, tmp_path, monkeypatch):
    fail_at(monkeypatch, shards.Preparation, "describe", 1, FULL)
    assert run()[0] == 2
    partial = tmp_path / ".out.partial"
    first = partial / "set" / "folder-train.array_record-00000-of-00003"
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    code, _, err = run("--size=4")
    assert code == 2 and "was begun with other settings (size); give those" in err
    code, summary, _ = run()
    assert code == 0 and summary["made"]["examples"] == ROWS


def test_what_changed_in_the_source_is_made_anew_and_said(films, run, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, shards.Preparation, "describe", 1, FULL)
        assert run()[0] == 2
    (films / "03.png").write_bytes((films / "00.png").read_bytes() + b"\0")
    code, summary, err = run()
    assert "1 finished shards were of other contents of the source" in err
    assert code == 0 and summary["made"]["examples"] == ROWS


def test_when_corrupt_images_are_mended_it_goes_on(films, run, whole, tmp_path):
    good = {i: (films / f"{i:02d}.png").read_bytes() for i in (2, 8, 12)}
    for i, data in good.items():
        (films / f"{i:02d}.png").write_bytes(data[:40])
    code, _, err = run()
    assert code == 2 and "2 unreadable samples of 14" in err
    assert f"{ROWS} examples are kept" in err  # the first shard, without 02.png
    for i in (8, 12):
        (films / f"{i:02d}.png").write_bytes(good[i])
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, shards.Preparation, "describe", 1, FULL)
        assert "18 examples are kept" in run()[2]
    (films / "02.png").write_bytes(good[2])
    code, summary, _ = run()
    assert code == 0 and summary["made"]["examples"] == ROWS
    assert contents(tmp_path / "out") == whole


def test_two_at_once_are_refused_and_the_first_is_not_disturbed(run, tmp_path):
    partial = tmp_path / ".out.partial"
    with files.locked(partial / journal.LOCK):
        code, _, err = run()
        assert code == 2 and "another process is preparing it" in err
        assert [p.name for p in partial.iterdir()] == [journal.LOCK]
    assert run()[0] == 0


def test_patients_are_known_without_reading_a_record(run, tmp_path, monkeypatch):
    assert run()[0] == 0
    data = types.SimpleNamespace(source="prepared", path=str(tmp_path / "out"))
    monkeypatch.setattr(sources.PreparedSource, "__getitem__", None)
    patients = [f"p{i // 2}" for i in range(14)]
    assert sources.open_source(data, "train").patients() == patients
    data.limit = 5
    some = sources.open_source(data, "train").patients()
    assert len(some) == 5 and set(some) <= set(patients)
    (tmp_path / "out" / "patients-train.json").write_bytes(b"x" * 84)
    with pytest.raises(PacxError, match=r"patients-train.json: damaged \(not the pat"):
        sources.open_source(data, "train").patients()


def test_tfds_gives_the_same_examples(films, tmp_path, run):
    assert run()[0] == 0
    options = prepare.parse(["folder", f"--source={films}", f"--target={tmp_path}"])
    plan = folder_dataset_builder.make_plan(films, options)
    builder = folder_dataset_builder.Builder(plan=plan, data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare()
    ours = records.tfds.builder_from_directory(str(tmp_path / "out"))
    raw = {"image": records.tfds.decode.SkipDecoding()}
    for split in ("train", "val"):
        sets = (b.as_data_source(split, decoders=raw) for b in (builder, ours))
        for one, two in zip(*sets, strict=True):
            assert one.keys() == two.keys()
            assert all(np.array_equal(one[k], two[k]) for k in one)


# Each call runs in a child that kills itself before its n-th change on the disk.
KILLING = """
import os, pathlib, signal, sys
from data import prepare, shards

shards.LEAST = int(sys.argv[1])
target = pathlib.Path(sys.argv[2])


def run(moment):
    child = os.fork()
    if not child:
        left = [moment]

        def deadly(function):
            def call(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "rename", "rmdir", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        os._exit(prepare.main(sys.argv[3:] + [f"--target={target}", "--workers=1"]))
    return os.waitpid(child, 0)[1]


assert run(-1) == 0
whole = {p.name: p.read_bytes() for p in target.iterdir()}
moment = killed = 0
while True:
    moment += 5  # a shard has six changes: in the end each of them was the last one
    target.rename(target.with_name(f"{target.name}{moment}"))
    if run(moment) == 0:
        break
    killed += 1
    assert run(-1) == 0, moment
    assert {p.name: p.read_bytes() for p in target.iterdir()} == whole, moment
print(killed, moment)
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(films, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(ROWS), tmp_path / "out", "folder"]
        + [f"--source={films}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 5
