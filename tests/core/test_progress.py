"""What a run shows while it trains, and what `pacx runs` says of several."""

import io
import json
import sys
import types

import pytest

from pacx_jax import files
from pacx_jax.commands import runs
from pacx_jax.run import progress

CONFIG = types.SimpleNamespace(name="mae", total_steps=100, global_batch_size=32)
TAKEN = {"productive": 2.0, "recomputed": 0.0, "data_stall": 0.5, "evaluation": 99.0}


def show(shown):
    shown.logged(10, 0.5, TAKEN)
    shown.stepped()
    shown.logged(20, 0.25, TAKEN)
    shown.evaluated(20, "val/loss 0.3000")
    shown.close()


def test_plain_lines_say_loss_rate_time_left_and_waiting(capsys):
    show(progress.Progress(CONFIG, 0))
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "  step 10 of 100: loss 0.5000, 128 images/s, 0:00:22 left, "
        "20% waiting for data",
        "  step 20: val/loss 0.3000",
    ]
    assert not err


def test_quiet_says_nothing(capsys):
    show(progress.Progress(CONFIG, 0, quiet=True))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_live_line(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    show(progress.Progress(CONFIG, 0))
    assert "mae:   1%" in terminal.getvalue()
    assert "loss 0.2500, 128 images/s" in terminal.getvalue()
    assert capsys.readouterr().out == "  step 20: val/loss 0.3000\n"


def workdir(root, name, step, **more):
    path = root / name
    about = {"name": name, "objective": "mae", "total_steps": 9, "best": "val/loss"}
    files.write_json(path / "config.json", about)
    rows = [{"step": s, "loss": 1.0} for s in range(1, step + 1)]
    rows += [{"step": step, "val/loss": 0.5}] if step else []
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    files.write(path / "metrics.jsonl", lines)
    for file, content in more.items():
        files.write_json(path / f"{file}.json", content)
    return path


def test_runs_are_finished_running_stopped_or_failed(tmp_path, capsys):
    workdir(tmp_path, "done/a", 9, done={"step": 9})
    workdir(tmp_path, "b", 4, failed={"error": "b.png: unreadable"})
    workdir(tmp_path, "c", 4)
    held = workdir(tmp_path, "d", 0)
    workdir(tmp_path, "c/export", 1)  # of a run: not one itself
    files.write(tmp_path / "e/config.json", "{}")  # another software's
    with files.locked(held / "lock"):
        assert runs.main([str(tmp_path), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["stage"], r["step"], r["metric"], r["state"]) for r in rows] == [
        ("b", "4/9", "val/loss 0.5000", "failed"),
        ("c", "4/9", "val/loss 0.5000", "stopped"),
        ("d", "0/9", "", "running"),
        ("done/a", "9/9", "val/loss 0.5000", "finished"),
    ]
    assert runs.main([str(tmp_path)]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == list(runs.COLUMNS)
    assert first.endswith("failed: b.png: unreadable")


@pytest.mark.parametrize("name", ["none", "empty"])
def test_a_folder_without_runs_is_one_line(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert runs.main([str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
