"""Whole runs of `main.run` on a folder of small images: finish, resume, refuse."""

import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import files, load_encoder, main, step
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint
from tests import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(24):
        image = rng.integers(0, 256, (20, 24), dtype=np.uint8)
        PIL.Image.fromarray(image).save(root / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def config(images):
    c = tiny.config(
        "mae_vitb16",
        data__source="folder",
        data__path=str(images),
        data__val_fraction=0.25,
        data__image_size=16,
        data__threads=1,
        data__cache=True,
        model__variant="mu",
        model__patch_size=8,
        loss__mask_ratio=0.5,
        dtype="float32",
        num_devices=2,  # Orbax cuts each leaf into a part a device, in every save
        global_batch_size=8,
        total_steps=4,
        log_every=1,
        eval_every=2,
        save_every=2,
        best="val/loss",
        optim__warmup_steps=1,
        optim__peak_lr=1e-2,
    )
    c.model.decoder.update(width=16, depth=1, num_heads=2)
    return c


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A straight run of 4 steps."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    main.run(config, str(workdir))
    return workdir


def rows(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def started_at(workdir) -> list[int]:
    """The steps at which the processes of a run began."""
    lines = (workdir / "timings.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if "setup_seconds" in r]


def test_run_logs_evaluates_saves_and_exports(finished, config):
    assert [r["step"] for r in rows(finished)] == [1, 2, 3, 4]
    assert all(np.isfinite(r["loss"]) for r in rows(finished))
    evaluated = [r["step"] for r in rows(finished) if "val/loss" in r]
    assert evaluated == [2, 4]
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["2", "4"]
    assert json.loads((finished / "config.json").read_text())["seed"] == config.seed
    done = json.loads((finished / "done.json").read_text())
    assert done["step"] == 4
    assert done["metrics"]["val/loss"] == rows(finished)[-1]["val/loss"]


def test_exported_encoder_is_the_trained_one_without_decoder(finished):
    params = checkpoint.read_params(finished)
    exported = model_folder.load(finished, "vit")
    want, got = tiny.flat(params["encoder"]), tiny.flat(exported.params)
    assert want.keys() == got.keys() and "decoder" in params
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert exported.preprocessing["mean"] == [0.485, 0.456, 0.406]
    card = (finished / "export" / "README.md").read_text()
    assert "step 4" in card and f"{rows(finished)[-1]['val/loss']:.4f}" in card
    z = load_encoder(finished, batch_size=2)(np.zeros((30, 20), np.uint8))
    assert z.shape == (1, 32)
    # The training patients stay in the workdir.
    assert (finished / "patients.json").is_file()
    files = {p.name for p in (finished / "export").iterdir()}
    ours = {"config.json", "model.safetensors", "README.md"}
    assert files == ours | {"golden.safetensors"}


def test_finished_workdir_is_left_as_it_is(finished, config, capsys):
    def contents():
        return {
            p: (p.stat().st_mtime_ns, p.read_bytes())
            for p in sorted(finished.rglob("*"))
            if p.is_file()
        }

    before = contents()
    main.run(config, str(finished))
    assert contents() == before
    assert "is finished, nothing to do" in capsys.readouterr().out


def test_another_config_is_refused_with_the_fields_that_differ(finished, config):
    before = (finished / "metrics.jsonl").read_bytes()
    other = tiny.copy_of(config)
    other.optim.peak_lr, other.seed = 0.5, 9
    with pytest.raises(PacxError) as error:
        main.run(other, str(finished))
    text = str(error.value)
    assert "optim.peak_lr was 0.01, is 0.5" in text and "seed was 0, is 9" in text
    assert "mask_ratio" not in text and "\n" not in text
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_what_changes_no_number_may_differ(finished, config):
    other = tiny.copy_of(config)
    other.data.threads, other.num_devices, other.keep = 2, 4, 5
    other.mesh.fsdp, other.accumulate, other.remat = 2, 2, "full"
    other.data.prefetch_to_device = 0
    before = (finished / "metrics.jsonl").read_bytes()
    main.run(other, str(finished))
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_run_from_before_there_was_a_mesh_is_this_config_s(finished, config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    record = json.loads((workdir / "config.json").read_text())
    for name in ("mesh", "accumulate", "remat"):
        del record[name]
    del record["data"]["prefetch_to_device"]
    (workdir / "config.json").write_text(json.dumps(record))
    main.run(config, str(workdir))


def interrupt_at(monkeypatch, n):
    """The train step raises instead of making update number n."""
    original = step.make_train_step

    def make_train_step(*args):
        train_step = original(*args)

        def stopping(state, batch, key):
            if int(state.step) == n - 1:
                raise KeyboardInterrupt
            return train_step(state, batch, key)

        return stopping

    monkeypatch.setattr(step, "make_train_step", make_train_step)


def test_interrupted_run_gives_the_bytes_of_the_straight_one(
    finished, config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4)
        with pytest.raises(KeyboardInterrupt):
            main.run(config, str(tmp_path))
    assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3]
    assert not (tmp_path / "done.json").exists()
    main.run(config, str(tmp_path))
    assert started_at(tmp_path) == [0, 2]
    assert_same_run(tmp_path, finished)


def test_run_killed_between_last_save_and_export_finishes(finished, config, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    (workdir / "done.json").unlink()
    shutil.rmtree(workdir / "export")
    main.run(config, str(workdir))
    assert_same_run(workdir, finished)
    done = json.loads((workdir / "done.json").read_text())
    assert done == json.loads((finished / "done.json").read_text())


def assert_same_run(workdir, finished):
    name = "metrics.jsonl"
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    for which in ("latest", "best"):
        a = tiny.flat(checkpoint.read_params(workdir, which))
        b = tiny.flat(checkpoint.read_params(finished, which))
        for leaf in b:
            np.testing.assert_array_equal(a[leaf], b[leaf])
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def test_continued_training_starts_from_the_parts_of_another_run(
    finished, config, tmp_path, monkeypatch
):
    other, seen = tiny.copy_of(config), []
    other.model_init = str(finished)

    def make_train_step(*args):
        def train_step(state, batch, key):
            seen.append(jax.device_get(state))
            raise KeyboardInterrupt

        return train_step

    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", make_train_step)
        with pytest.raises(KeyboardInterrupt):
            main.run(other, str(tmp_path))
    want = tiny.flat(checkpoint.read_params(finished, "latest"))
    got = tiny.flat(step.merge_params(seen[0].params, seen[0].frozen))
    assert int(seen[0].step) == 0 and want.keys() == got.keys()
    assert any(k.startswith("decoder/") for k in got)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"global_batch_size": 9}, "global_batch_size 9 is not divisible by 2"),
        ({"num_devices": 9}, "num_devices is 9 but there are 8"),
        ({"data__path": "/nowhere"}, "/nowhere"),
        ({"data__source": "cloud"}, "data.source 'cloud'"),
        ({"data__label_columns": ("Pneumonia",)}, "data.label_columns is set but"),
        ({"model__patch_size": 7}, "not divisible by patch_size 7"),
        ({"model__variant": "XL"}, "config.model.variant is 'XL'"),
        ({"loss__mask_ratio": 1.0}, "mask_ratio 1.0 keeps 0 of 4"),
        ({"best": "val/auroc"}, "config.best 'val/auroc' is not among"),
        ({"best_mode": "up"}, "config.best_mode is 'up': choose min or max"),
        ({"nonfinite": "Stop"}, "config.nonfinite is 'Stop': choose stop or skip"),
        ({"max_skipped": -1}, "config.max_skipped is -1: give at least 0"),
        ({"data__prefetch_to_device": -1}, "prefetch_to_device is -1: give at least 0"),
        ({"model_init": "/nowhere"}, "/nowhere"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_wrong_setting_is_a_one_line_error(config, tmp_path, fields, expected):
    other = tiny.copy_of(config)
    other.update_from_flattened_dict(
        {k.replace("__", "."): v for k, v in fields.items()}
    )
    with pytest.raises(PacxError) as error:
        main.run(other, str(tmp_path / "run"))
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_value_that_is_not_a_number_stops_the_run_and_is_not_saved(
    config, tmp_path, monkeypatch, name
):
    # Nothing is logged before step 4, but what step 2 would save is looked at, and
    # the first bad step is told.
    original = step.make_train_step

    def make_train_step(*args):
        train_step = original(*args)

        def broken(state, batch, key):
            state, values = train_step(state, batch, key)
            return state, values | {name: jax.device_put(np.float32("nan"))}

        return broken

    monkeypatch.setattr(step, "make_train_step", make_train_step)
    other = tiny.copy_of(config)
    other.log_every = 4
    with pytest.raises(PacxError, match=f"the {name} is nan at step 1: lower"):
        main.run(other, str(tmp_path))
    assert not (tmp_path / "done.json").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_workdir_of_a_run_that_never_started_can_be_mended(config, tmp_path, images):
    # A typing error in the path must not claim the workdir for that config.
    other = tiny.copy_of(config)
    other.data.path = "/nowhere"
    with pytest.raises(PacxError):
        main.run(other, str(tmp_path))
    other.data.path = str(images)
    main.run(other, str(tmp_path))
    assert (tmp_path / "done.json").exists()


def test_second_run_in_one_workdir_stops_and_leaves_the_first_alone(
    finished, config, tmp_path, monkeypatch
):
    # While the first one trains: with its own config, and with another.
    other, told = tiny.copy_of(config), []
    other.seed = 9
    original = step.make_train_step

    def make_train_step(*args):
        for second in (config, other):
            with pytest.raises(PacxError) as error:
                main.run(second, str(tmp_path))
            told.append(str(error.value))
        return original(*args)

    monkeypatch.setattr(step, "make_train_step", make_train_step)
    main.run(config, str(tmp_path))
    assert (
        told == [f"{tmp_path}: another run is writing here: take another --workdir"] * 2
    )
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == config.seed
    assert_same_run(tmp_path, finished)


def test_finished_run_is_measured_while_another_holds_its_lock(
    finished, config, capsys
):
    with files.locked(finished / "lock", "taken"):
        main.measure(tiny.copy_of(config), str(finished), "val")
    assert "split val, n 8" in capsys.readouterr().out
    (finished / "evaluation_val.json").unlink()
