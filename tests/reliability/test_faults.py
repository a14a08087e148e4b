"""Checkpoints that cannot lie. tests/fuzz/test_checkpoints.py has random faults."""

import json
import os
import shutil

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint, manifest, saved_steps
from tests.fuzz import checkpoints


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints.save_steps(folder)
    return folder


def test_step_without_manifest_is_no_checkpoint_and_moved_aside(
    pristine, tmp_path, capsys
):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    (folder / "9" / manifest.NAME).unlink()
    assert saved_steps.Steps(folder, keep=2).newest()[0] == 6
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and "9 is damaged (manifest.json is mis" in said
    assert (folder / "9.damaged" / "state").is_dir() and not (folder / "9").exists()


def test_step_under_the_name_of_another_is_damage(pristine, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    (folder / "9").rename(folder / "12")
    assert saved_steps.Steps(folder, keep=2).newest()[0] == 6
    assert "12 is damaged (it holds step 9)" in capsys.readouterr().err


def test_manifest_of_another_version_or_with_a_changed_word_is_damage(
    pristine, tmp_path
):
    folder = tmp_path / "9"
    shutil.copytree(pristine / "9", folder)
    path = folder / manifest.NAME
    content = json.loads(path.read_text())
    assert manifest.verify(folder)["metrics"] == {"loss": 1 / 9}
    content["about"]["metrics"]["loss"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(manifest.Damaged, match="its own checksum differs"):
        manifest.verify(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "null", '{"sha256": 1}', '{"format": 1, "files": null}', "\x00"],
    ids=["deep", "null", "checksum", "files", "binary"],
)
def test_manifest_that_is_none_moves_on_to_the_step_before(pristine, tmp_path, text):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    if '"files"' in text:  # its checksum is right
        content = json.loads(text)
        content["sha256"] = manifest.checksum_of(content)
        text = json.dumps(content)
    (folder / "9" / manifest.NAME).write_text(text)
    assert saved_steps.Steps(folder, keep=2).newest()[0] == 6


def test_what_is_no_file_or_no_folder_is_damage_or_removed(pristine, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(pristine, folder)
    file = next(p for p in (folder / "9" / "state").rglob("*") if p.is_file())
    file.unlink()
    os.mkfifo(file)  # to open it would wait for ever
    (folder / "20.saving").write_text("")
    assert saved_steps.Steps(folder, keep=2).newest()[0] == 6
    assert not (folder / "20.saving").exists()


def test_state_of_another_dtype_or_shape_is_refused_by_name(pristine):
    about = manifest.verify(pristine / "9")
    for name, leaf in (
        ("bias", np.zeros(7, np.float16)),
        ("kernel", np.zeros((64, 32))),
    ):
        with pytest.raises(PacxError, match=f"such as {name}: "):
            checkpoint.restore(
                pristine / "9", about, checkpoints.state(0) | {name: leaf}
            )


def test_old_steps_go_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    steps = saved_steps.Steps(folder, keep=1)
    steps.save(checkpoints.state(1), 1, {})
    steps.settle()

    def broken(*args):
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write", broken)
        steps.save(checkpoints.state(2), 2, {})
        with pytest.raises(RuntimeError):
            steps.settle()
    assert checkpoints.restored(folder) == 1
    steps.save(checkpoints.state(2), 2, {})
    steps.close()
    assert [p.name for p in folder.iterdir()] == ["2"] and checkpoints.restored(
        folder
    ) == 2
