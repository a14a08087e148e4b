"""The code and devices of each session of a run."""

import json
import subprocess

import jax

import pacx_jax
from pacx_jax.run import versions


def test_each_session_says_its_code_and_devices(tmp_path):
    for step in (0, 5):
        versions.record(str(tmp_path), step)
    rows = (tmp_path / versions.FILE).read_text().splitlines()
    first, second = map(json.loads, rows)
    assert (first["step"], second["step"]) == (0, 5)
    assert first["pacx_jax"] == pacx_jax.__version__ and first["jax"] == jax.__version__
    assert first["devices"].startswith(f"{jax.device_count()} ")


def test_commit_is_of_the_checkout_itself(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    (tmp_path / "file").write_text("1")
    assert versions.commit(tmp_path) == ""
    git("init")
    assert versions.commit(tmp_path) == ""  # no commit yet
    git("add", "file")
    git("commit", "-m", "one")
    found = versions.commit(tmp_path)
    assert len(found) == 12 and set(found) <= set("0123456789abcdef")
    (tmp_path / "file").write_text("2")
    assert versions.commit(tmp_path) == f"{found} with changes"
    (tmp_path / "inside").mkdir()
    assert versions.commit(tmp_path / "inside") == ""
