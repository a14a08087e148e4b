"""Losses that are not numbers, replayed steps, hung steps, other data, goodput."""

import json

import jax
import numpy as np
import pytest

from pacx_jax import main, step
from pacx_jax.commands import replay
from pacx_jax.distributed import preemption
from pacx_jax.errors import PacxError
from pacx_jax.input import sources
from pacx_jax.run import goodput
from tests import profiles, tiny
from tests.reliability import runs

BAD = 7  # a patient whose laboratory value squared is more than float32 holds


class Unwell(runs.Patients):
    def __getitem__(self, i):
        example = super().__getitem__(i)
        if i == BAD and self.split == "train":
            example["labs"] = example["labs"] + np.float32(1e30)
            example["labs_mask"] = np.ones(50, np.float32)
        return example


@pytest.fixture
def unwell(monkeypatch):
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(sources, "open_source", lambda data, split: Unwell(split))


def config(**fields):
    fields = {"num_devices": 1, "loss__corruption": 0.0} | fields
    return runs.config("labs_dae", {}, **fields)


def listed(workdir) -> list[dict]:
    return [
        json.loads(x) for x in (workdir / "nonfinite.jsonl").read_text().splitlines()
    ]


def test_steps_that_are_no_numbers_are_skipped_listed_and_replayed(
    unwell, tmp_path, capsys
):
    main.run(config(nonfinite="skip", max_skipped=20), str(tmp_path))
    rows = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    null = [row["step"] for row in rows if row["loss"] is None]
    found = listed(tmp_path)
    # Each epoch of 20 patients has the bad one once.
    assert [row["step"] for row in found] == null and 6 <= len(null) <= 9
    assert all(row["samples"].count(f"train[{BAD}]") >= 1 for row in found)
    assert all(np.isfinite(leaf).all() for leaf in runs.state(tmp_path).values())
    assert "inf at step" in capsys.readouterr().err
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    again = replay.replay(str(tmp_path), null[-1])
    assert again["samples"] == found[-1]["samples"]
    assert not np.isfinite(again["metrics"]["loss"]) and again["logged"] is True
    # A step with a loss, from the last checkpoint before it: the same to the last bit.
    good = max(row["step"] for row in rows if row["loss"] is not None)
    again = replay.replay(str(tmp_path), good)
    assert again["from_step"] in (18, 0) and again["logged"] is True
    assert again["metrics"]["loss"] == rows[good - 1]["loss"]
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"nonfinite": "stop"}, "lower config.optim.peak_lr"),
        ({"nonfinite": "skip", "max_skipped": 2}, "more than config.max_skipped=2"),
    ],
    ids=["stop", "skip"],
)
def test_run_ends_at_the_first_such_step_or_after_too_many(
    unwell, tmp_path, fields, expected
):
    with pytest.raises(PacxError) as error:
        main.run(config(**fields), str(tmp_path))
    text, rows = str(error.value), listed(tmp_path)
    assert expected in text and f"at step {rows[-1]['step']}" in text
    assert f"replay --workdir={tmp_path} --step={rows[-1]['step']}" in text
    assert len(rows) == 1 + fields.get("max_skipped", 0)
    # The same command stops there again: nothing is forgotten or counted twice.
    with pytest.raises(PacxError):
        main.run(config(**fields), str(tmp_path))
    assert listed(tmp_path) == rows


def test_replay_of_a_step_that_is_none_is_one_line(unwell, tmp_path):
    with pytest.raises(PacxError, match="config.json does not exist"):
        replay.replay(str(tmp_path), 1)
    (tmp_path / "config.json").write_text(config().to_json_best_effort())
    with pytest.raises(PacxError, match="--step 21: .* has steps 1 to 20"):
        replay.replay(str(tmp_path), 21)


class Others(runs.Patients):
    def __init__(self, split):
        super().__init__(split)
        self.fingerprint = self.fingerprint[::-1] if split == "train" else split


def stop_early(workdir, monkeypatch) -> None:
    """A run that SIGTERM has stopped after a few steps."""
    runs.use_patients(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(5, runs.ask_to_end)
        with pytest.raises(main.preemption.Preempted):
            main.run(config(), str(workdir))


def test_run_does_not_go_on_with_other_data_unless_forced(
    tmp_path, monkeypatch, capsys
):
    stop_early(tmp_path, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(sources, "open_source", lambda data, split: Others(split))
        with pytest.raises(PacxError) as error:
            main.run(config(), str(tmp_path))
        text = str(error.value)
        assert "a run of another data: train.fingerprint was" in text
        assert "val.fingerprint was" in text and "--force goes on" in text
        with pytest.raises(PacxError, match="is a run on other data: train.finger"):
            replay.replay(str(tmp_path), 3)
        main.run(config(), str(tmp_path), force=True)
    assert "Forced to go on" in capsys.readouterr().err
    forced = (tmp_path / "forced.jsonl").read_text().splitlines()
    assert len(forced) == 1 and "train.fingerprint" in forced[0]


def test_what_is_refused_though_forced_leaves_the_run_its_records(
    tmp_path, monkeypatch
):
    stop_early(tmp_path, monkeypatch)
    before = {n: (tmp_path / n).read_bytes() for n in ("config.json", "data.json")}
    with pytest.raises(PacxError, match="differ"):
        main.run(config(model__hidden=48), str(tmp_path), force=True)
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    main.run(config(), str(tmp_path))
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "lo')
    with pytest.raises(PacxError, match="metrics.jsonl: line 1 is damaged"):
        replay.replay(str(tmp_path), 3)


def test_replays_flags_are_told_in_a_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        replay.main(["--workdir=x", "--step=abc"])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_hung_step_has_its_stacks_dumped(tmp_path, monkeypatch, capfd):
    runs.use_patients(monkeypatch)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)
    runs.at_update(3, lambda: runs.time.sleep(1.0))
    main.run(config(watchdog_seconds=0.5), str(tmp_path))
    said = capfd.readouterr().err
    assert "Timeout (0:00:00.5" in said and "in take_steps" in said


def test_goodput_adds_up_and_is_kept_over_sessions(tmp_path, monkeypatch):
    runs.use_patients(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.slow_steps(0.02)
        runs.at_update(5, lambda: runs.raise_(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            main.run(config(), str(tmp_path))
    first = goodput.read(str(tmp_path))
    main.run(config(), str(tmp_path))
    second = goodput.read(str(tmp_path))
    assert (first["sessions"], second["sessions"]) == (1, 2)
    assert first["seconds"]["recomputed"] == 0 < second["seconds"]["recomputed"]
    assert 3 * 0.02 <= first["seconds"]["productive"] < second["seconds"]["productive"]
    for kind, seconds in first["seconds"].items():
        assert 0 <= seconds <= second["seconds"][kind] + 1e-9, kind
    total = sum(second["seconds"].values())
    assert abs(second["goodput"] - second["seconds"]["productive"] / total) < 1e-3
    assert second["reached_step"] == runs.STEPS


def test_another_weight_to_start_from_is_other_data(tmp_path, monkeypatch):
    folders = tiny.write_folders(tmp_path)
    runs.use_patients(monkeypatch)
    from pacx_jax.run import batches, setup

    def found(seed):
        tiny.model_folder.save(tmp_path / "vit", tiny.folder("vit", seed), card="")
        c = runs.config("mae", folders, model_init=folders["model_init"])
        c.model_init_parts = ("encoder",)
        c.data.image_size = 32
        run = setup.prepare(c, str(tmp_path / "run"), batches.open_sources(c))
        return run.fingerprints()

    one, same, other = found(0), found(0), found(1)
    assert one == same != other
    assert [k for k in one if one[k] != other[k]] == ["weights.encoder"]


def test_a_trace_holds_the_steps_asked_for_by_their_numbers(unwell, tmp_path):
    main.run(config(nonfinite="skip", max_skipped=20, profile_steps=2), str(tmp_path))
    stats = [s for name, s in profiles.events(tmp_path / "profile") if name == "train"]
    assert [s["step_num"] for s in stats] == [3, 4]
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


def test_a_folder_that_takes_no_trace_is_one_line(unwell, tmp_path):
    (tmp_path / "profile").write_text("in the way")
    with pytest.raises(PacxError, match="profile: no trace can be written"):
        main.run(config(nonfinite="skip", profile_steps=2), str(tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("disk", ["full", "free"])
def test_a_run_preempted_in_its_trace_is_saved_and_goes_on(
    disk, unwell, tmp_path, monkeypatch, caplog
):
    end = jax.profiler.stop_trace

    def on_full_disk():
        end()
        raise RuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    def start():
        fields = {"nonfinite": "skip", "total_steps": 8, "profile_steps": 20}
        main.run(config(**fields), str(tmp_path))

    if disk == "full":
        monkeypatch.setattr(jax.profiler, "stop_trace", on_full_disk)
    monkeypatch.setattr(step, "make_train_step", step.make_train_step)
    runs.at_update(5, runs.ask_to_end)
    with pytest.raises(preemption.Preempted, match="saved at step 5"):
        start()
    stats = [s for name, s in profiles.events(tmp_path / "profile") if name == "train"]
    assert [s["step_num"] for s in stats] == [3, 4, 5]
    start()  # three steps more, of which the third is traced until the run ends
    assert (tmp_path / "done.json").exists()
    said = [r.getMessage() for r in caplog.records if "no trace" in r.getMessage()]
    assert len(said) == (2 if disk == "full" else 0)
    assert all("No space left on device); the run goes on" in text for text in said)
