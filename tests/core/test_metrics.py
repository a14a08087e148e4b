"""metrics.jsonl: what is kept on a resume, and that its bytes are determined."""

import json
import sys

import pytest

from pacx_jax.errors import PacxError
from pacx_jax.run import metrics


def write(workdir, start, steps):
    writer = metrics.MetricsWriter(workdir, start)
    for n in steps:
        writer.write(n, {"loss": 1 / n, "val/auroc": 0.1 * n})
        writer.write_timing(n, {"seconds": 1.5})
    writer.close()
    return (workdir / "metrics.jsonl").read_bytes()


def test_rows_hold_the_step_and_the_values(tmp_path):
    write(tmp_path, 0, [1, 2])
    assert metrics.read_rows(tmp_path) == [
        {"step": 1, "loss": 1.0, "val/auroc": 0.1},
        {"step": 2, "loss": 0.5, "val/auroc": 0.2},
    ]
    assert json.loads((tmp_path / "timings.jsonl").read_text().splitlines()[0]) == {
        "step": 1,
        "seconds": 1.5,
    }


def test_two_runs_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert write(tmp_path / "a", 0, range(1, 9)) == write(
        tmp_path / "b", 0, range(1, 9)
    )


def test_rows_past_the_restored_step_are_dropped(tmp_path):
    (tmp_path / "straight").mkdir()
    (tmp_path / "resumed").mkdir()
    straight = write(tmp_path / "straight", 0, range(1, 9))
    write(tmp_path / "resumed", 0, range(1, 7))
    resumed = write(tmp_path / "resumed", 4, range(4, 9))  # its own row is dropped too
    assert resumed == straight
    timings = (tmp_path / "resumed" / "timings.jsonl").read_text().splitlines()
    assert [json.loads(t)["step"] for t in timings] == [1, 2, 3, 4, *range(4, 9)]


def test_half_written_last_line_is_dropped(tmp_path):
    whole = write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        metrics.keep_rows(path, 3)
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])


def test_fresh_start_drops_what_an_interrupted_one_left(tmp_path):
    first = write(tmp_path, 0, [1, 2])
    assert write(tmp_path, 0, [1, 2]) == first


def test_value_that_does_not_exist_is_null(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer.write(1, {"auroc": float("nan"), "loss": float("inf")})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "auroc": None,
        "loss": None,
    }


def test_row_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": 2.0})
    assert metrics.read_rows(tmp_path) == [{"step": 1, "loss": 2.0}]
    writer.close()


def test_run_without_metrics_is_an_error(tmp_path):
    with pytest.raises(PacxError, match="metrics.jsonl does not exist"):
        metrics.read_rows(tmp_path)


class Board:
    """Stands for the package wandb, which is an extra, and for its run."""

    def __init__(self):
        self.begun, self.logged, self.ended = [], [], 0

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **given):
        self.begun.append(given)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.ended += 1


def test_weights_and_biases_get_what_the_files_get(tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    for start in (0, 1):  # a resumed run goes on with the same one there
        writer = metrics.MetricsWriter(tmp_path, start, "xrays")
        writer.write(start + 1, {"loss": 0.5})
        writer.write_timing(start + 1, {"seconds": 2.0})
        writer.close()
    assert board.logged[:2] == [(1, {"loss": 0.5}), (1, {"timing/seconds": 2.0})]
    first, second = board.begun
    assert first == second and first["project"] == "xrays"
    assert first["config"] == {"seed": 3} and first["resume"] == "allow"
    assert board.ended == 2


def test_weights_and_biases_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PacxError, match=r"config.wandb=xrays: run pip .*\[wandb\]"):
        metrics.writer(tmp_path, 0, "xrays")
    assert metrics.writer(tmp_path, 0) is not None
