"""Sets that are prepared into and from buckets, and trained from there."""

import json
import pathlib
import shutil
from urllib.parse import unquote

import numpy as np
import PIL.Image
import pytest

from data import audit, prepare
from pacx_jax import main
from pacx_jax.input import prepared, sources
from pacx_jax.stores import lock, objects, staging
from tests.reliability import runs


@pytest.fixture
def films(tmp_path):
    """24 images in three splits, with labels and patients."""
    root = tmp_path / "films"
    root.mkdir()
    rows, rng = ["path,patient_id,y,split"], np.random.default_rng(0)
    for i in range(24):
        grey = rng.integers(0, 256, (20, 16), np.uint8)
        PIL.Image.fromarray(grey).save(root / f"{i:02d}.png")
        split = "train" if i < 12 else "val" if i < 20 else "test"
        rows.append(f"{i:02d}.png,p{i // 2},{i % 2},{split}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def run(capsys):
    """data/prepare.py: (exit code, JSON of the last line, stderr)."""

    def command(*argv):
        code = prepare.main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if code == 0 else None, err

    return command


def sent(proxy, since: int = 0) -> list[str]:
    """The files that were written, in order."""
    paths = [unquote(p.partition("?")[0]) for m, p in proxy.requests[since:]
             if m == "PUT"]  # fmt: skip
    return [p.rpartition("/")[2] for p in paths if not p.endswith(lock.NAME)]


def test_set_is_prepared_into_a_bucket_staged_and_trained_from(
    films, run, url, proxy, tmp_path
):
    flags = ["folder", f"--source={films}", "--workers=1", "--size=16"]
    target = f"{url}/prepared/films"

    def fault(method, path):
        there = method == "PUT" and unquote(path).endswith("films/features.json")
        return "denied" if there else ""

    proxy.fault = fault
    code, _, err = run(*flags, f"--target={target}/")
    line = f"error: {target}/features.json: your credentials do not let it be written"
    assert code == 2 and err.splitlines()[-1].startswith(line)
    assert "pacx.json" not in sent(proxy)
    began, proxy.fault = len(proxy.requests), lambda method, path: ""
    code, summary, _ = run(*flags, f"--target={target}")
    assert code == 0 and summary["target"] == target and "made" not in summary
    again = sent(proxy, began)
    assert again[0] == "features.json" and again[-1] == "pacx.json"
    assert not set(again) & set(sent(proxy)[: sent(proxy).index("features.json")])
    assert run(*flags, f"--target={tmp_path}/here")[0] == 0
    here = {p.name: p.stat().st_size for p in (tmp_path / "here").iterdir()}
    there = {k: v.size for k, v in objects.Store(target).list().items()}
    assert there.pop("pacx.json") > here.pop("pacx.json") - 200 and there == here
    assert not list((staging.scratch() / "prepared").glob("films*"))
    assert run(*flags, f"--target={target}")[1]["status"] == "unchanged"
    assert run("--check", f"--target={target}")[1]["target"] == target
    code, _, err = run(*flags, f"--target={target}", "--size=8")
    assert code == 2 and f"{target}: was prepared with other settings (size)" in err
    far, near = (sources.PreparedSource(str(p), "val")
                 for p in (target, tmp_path / "here"))  # fmt: skip
    assert far.fingerprint == near.fingerprint and far[3] == near[3]
    data = {"data__source": "prepared", "data__path": target, "num_devices": 1}
    data |= {"data__stage": str(tmp_path / "stage"), "total_steps": 2}
    main.run(runs.config("mae", {}, **data), str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "done.json").read_text())["step"] == 2
    assert any((tmp_path / "stage").rglob("*.array_record*"))


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_source_in_a_bucket_is_prepared_as_from_the_disk(films, run, url, tmp_path):
    for file in films.iterdir():
        staging.send(objects.Store(f"{url}/films"), file.name, file)
    found = []
    for source, target in ((films, "near"), (f"{url}/films", "far")):
        flags = [f"--source={source}", f"--target={tmp_path / target}"]
        found.append(run("folder", *flags, "--csv=labels.csv")[1]["fingerprint"])
    assert found[0] == found[1]
    assert audit.main([f"{url}/films"]) == 0
    full = shutil.disk_usage("/")._replace(free=1000)
    shutil.rmtree(staging.scratch())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: full)
        flags = [f"--source={url}/films", f"--target={tmp_path / 'full'}"]
        code, _, err = run("folder", *flags)
    assert code == 2 and f"no space left for a copy of {url}/films" in err


@pytest.mark.parametrize("port", ["gs"], indirect=True)
def test_target_that_is_another_s_is_left_alone(films, run, url, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS", 1.0)
    flags = ["folder", f"--source={films}"]
    objects.Store(f"{url}/notes").write("a.txt", b"mine")
    code, _, err = run(*flags, f"--target={url}/notes")
    assert code == 2 and f"{url}/notes: exists and is not a prepared data set" in err
    other = lock.Lock(f"{url}/set/.preparing", lambda text: None)
    other.acquire()
    code, _, err = run(*flags, f"--target={url}/set")
    other.release()
    assert code == 2 and err.splitlines()[-1].endswith(
        "is writing here: wait for that to end, or choose another --target"
    )
    assert prepared.FILE not in objects.Store(f"{url}/set").list()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("gcs://bucket/set", "gcs://bucket/set: did you mean gs://bucket/set?"),
        ("S3://bucket/set", "S3://bucket/set: did you mean s3://bucket/set?"),
        ("s3:/bucket/set", "s3:/bucket/set: did you mean s3://bucket/set?"),
    ],
)
def test_target_that_is_nearly_a_url_is_one_line(target, text, run, tmp_path):
    code, _, err = run("folder", f"--source={tmp_path}", f"--target={target}")
    assert (code, err) == (2, f"error: {text}\n")
    assert not any(pathlib.Path(name).exists() for name in ("gcs:", "S3:", "s3:"))
