"""Files of a workdir that are damaged or gone: one line that names them."""

import json
import types

import pytest

from pacx_jax import main
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint, fingerprints, goodput, metrics, nonfinite
from tests import tiny


def test_each_damaged_record_is_one_line_that_names_it(tmp_path):
    for name in ("data.json", "goodput.json", "best.json"):
        (tmp_path / name).write_text('{"step": ')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n\x00\n{"step": 3}\n')
    reads = {
        "data.json": lambda: fingerprints.check_data(
            str(tmp_path), {}, started=True, force=False
        ),
        "goodput.json": lambda: goodput.Ledger(str(tmp_path)),
        "best.json": lambda: checkpoint.Checkpointer(
            tmp_path, best="val/loss"
        ).save_if_best({}, 1, {"val/loss": 1.0}),
        "metrics.jsonl: line 2": lambda: metrics.read_rows(tmp_path),
        "metrics.jsonl: line 2 ?": lambda: metrics.MetricsWriter(tmp_path, 3),
    }
    for name, read in reads.items():
        with pytest.raises(PacxError, match=f"{name} is damaged") as error:
            read()
        assert "from a copy" in str(error.value) or "delete it" in str(error.value)
    (tmp_path / "goodput.json").write_text("{}")
    with pytest.raises(PacxError, match="goodput.json is damaged"):
        goodput.read(str(tmp_path))


@pytest.mark.parametrize("row", ['{"step": Infinity}', '{"step": null}', "[1]", "{"])
def test_row_without_a_step_is_damage(tmp_path, row):
    (tmp_path / "metrics.jsonl").write_text(row + "\n")
    with pytest.raises(PacxError, match="metrics.jsonl: line 1 is damaged"):
        metrics.read_rows(tmp_path)


def test_run_with_checkpoints_and_without_metrics_keeps_its_config(tmp_path):
    config = tiny.config("labs_dae")
    fingerprints.record(config, {}, str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    config.seed = 3
    with pytest.raises(PacxError, match="another config: seed was 0, is 3"):
        main.run(config, str(tmp_path))
    (tmp_path / fingerprints.CONFIG).unlink()
    with pytest.raises(PacxError, match=r"config.json is damaged .*No such file"):
        main.run(config, str(tmp_path))


def test_processes_compare_the_values_of_their_configs(tmp_path, monkeypatch):
    class Compared(Exception):
        pass

    seen = []

    def check_agreement(content):
        seen.append(content)
        raise Compared

    monkeypatch.setattr(processes, "check_agreement", check_agreement)
    for seed, name in ((0, "a"), (1, "b")):
        config = tiny.config("labs_dae")
        config.seed = seed
        with pytest.raises(Compared):
            main.run(config, str(tmp_path / name))
    one, other = seen
    differing = {name for name in one if one[name] != other[name]}
    assert differing == {"config.seed", "--workdir"}


def test_every_process_counts_the_skipped_steps_of_the_first(tmp_path, monkeypatch):
    rows = "".join(f'{{"step": {n}}}\n' for n in (1, 9))
    (tmp_path / nonfinite.FILE).write_text(rows)
    config = types.SimpleNamespace(nonfinite="skip", max_skipped=3)
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "agreed", lambda value: 1)  # 9 is not yet dropped
    assert nonfinite.Numbers(config, str(tmp_path), 5, list)._skipped == 1
    monkeypatch.undo()
    assert nonfinite.Numbers(config, str(tmp_path), 5, list)._skipped == 1
    assert json.loads((tmp_path / nonfinite.FILE).read_text()) == {"step": 1}
