"""Runs whose batches are put on the devices ahead of the step, and hidden transfers."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import main, sharding, step
from pacx_jax.errors import PacxError
from pacx_jax.input import pipeline
from pacx_jax.run import batches, goodput, setup
from tests import tiny
from tests.reliability import runs


@pytest.fixture(autouse=True)
def patients(monkeypatch):
    runs.use_patients(monkeypatch)


def config(**fields):
    """Compiled once for these tests and test_resume.py, where nothing else differs."""
    return runs.config("labs_dae", {}, **({"num_devices": 2} | fields))


def around_steps(monkeypatch, act) -> None:
    """Takes each update by act(train_step, state, batch, key)."""
    original = step.make_train_step

    def make_train_step(*args):
        train_step = original(*args)
        return lambda *args: act(train_step, *args)

    monkeypatch.setattr(step, "make_train_step", make_train_step)


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_are_the_same_bytes_however_many_are_ahead(devices, tmp_path):
    def first(count, start):
        c = config(num_devices=devices, data__prefetch_to_device=count)
        run = setup.prepare(c, str(tmp_path), batches.open_sources(c))
        stream, val = run.data.train(start), run.data.val()
        found = [next(stream) for _ in range(6)] + list(val)
        stream.close()
        return [
            {k: (x.sharding, x.dtype, np.asarray(x).tobytes()) for k, x in b.items()}
            for b in found
        ]

    for start in (0, 4):
        straight = first(0, start)
        assert len(straight) == 7 and len({str(b) for b in straight}) == 7
        assert first(1, start) == first(2, start) == straight


FULL = pytest.mark.full


@pytest.mark.full
@pytest.mark.parametrize(("first", "then"), [(2, 0), (0, 1)])
def test_stopped_run_goes_on_bit_for_bit_with_any_number_ahead(
    first, then, tmp_path, monkeypatch
):
    straight = tmp_path / "straight"
    main.run(config(data__prefetch_to_device=0), str(straight))
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(5, runs.ask_to_end)
        with pytest.raises(main.preemption.Preempted, match="saved at step 5"):
            main.run(config(data__prefetch_to_device=first), str(tmp_path / "run"))
    main.run(config(data__prefetch_to_device=then), str(tmp_path / "run"))
    runs.assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize(
    ("count", "devices"),
    [(0, 1), pytest.param(1, 1, marks=FULL), pytest.param(2, 8, marks=FULL)],
)
def test_loop_waits_for_no_copy_of_the_batch_that_it_is_about_to_use(
    count, devices, tmp_path, monkeypatch
):
    """While update n is taken, and nothing else is asked for, batch n + count comes."""
    put, condition, ready = [], threading.Condition(), []
    original = sharding.put_batch

    def put_batch(batch, mesh):
        done = original(batch, mesh)
        if "mask" not in batch:  # else it is one of an evaluation
            with condition:
                put.append(done)
                condition.notify()
        return done

    def act(train_step, state, batch, key):
        n = len(ready) + 1  # this update's number; its batch is put[n - 1]
        ready.append(all(x.is_ready() for x in jax.tree.leaves(batch)))
        assert all(batch[k] is put[n - 1][k] for k in batch)
        out = train_step(state, batch, key)
        with condition:
            assert condition.wait_for(lambda: len(put) >= n + count, timeout=20)
            assert len(put) <= n + count
        jax.block_until_ready(put[n:])  # in the time that this update takes
        return out

    monkeypatch.setattr(sharding, "put_batch", put_batch)
    around_steps(monkeypatch, act)
    fields = {"num_devices": devices, "log_every": 10}
    main.run(config(data__prefetch_to_device=count, **fields), str(tmp_path))
    assert len(ready) == runs.STEPS and len(put) >= runs.STEPS + count
    if count:
        assert all(ready[1:])  # the first batch has nothing to hide behind


def one_number(state, batch, key):
    jnp.float32(1.5)


def a_batch_of_the_host(state, batch, key):
    jax.jit(lambda x: x)({k: np.asarray(v) for k, v in batch.items()})


def a_key_on_one_device(state, batch, key):
    one = jax.device_put(key, jax.devices()[0])
    jax.jit(lambda x: x, in_shardings=key.sharding)(one)


@pytest.mark.parametrize("at", ["update", "evaluation"])
@pytest.mark.parametrize(
    "hidden", [one_number, a_batch_of_the_host, a_key_on_one_device]
)
def test_hidden_transfer_ends_the_run(hidden, at, tmp_path, monkeypatch):
    name = {"update": "make_train_step", "evaluation": "make_eval_step"}[at]
    original = getattr(step, name)

    def make(*args):
        made = original(*args)
        return lambda *args: (hidden(*args), made(*args))[1]

    monkeypatch.setattr(step, name, make)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed .* transfer"):
        main.run(config(), str(tmp_path))
    # The guard is the loop's alone.
    assert float(jnp.float32(1.5)) == 1.5


@pytest.fixture
def guarded_to_the_host(monkeypatch):
    """Makes hidden copies to the host an error on CPU too, where JAX makes none.

    Of an array on one device alone, NumPy reads the memory without being seen here.
    """
    kind, get = type(jnp.zeros(())), jax.device_get

    def device_get(tree):
        with jax.transfer_guard_device_to_host("allow"):
            return get(tree)

    def guarded(original):
        def read(array, *args, **kwargs):
            if jax.config.jax_transfer_guard_device_to_host == "disallow":
                raise RuntimeError("Disallowed device-to-host transfer")
            return original(array, *args, **kwargs)

        return read

    monkeypatch.setattr(jax, "device_get", device_get)
    for name in ("__array__", "__bool__", "__float__", "__int__", "item", "tolist"):
        monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))


@pytest.mark.parametrize("read", [float, np.asarray, bool], ids=["float", "np", "bool"])
def test_hidden_copy_to_the_host_would_be_seen(
    read, guarded_to_the_host, tmp_path, monkeypatch
):
    def act(train_step, *args):
        state, values = train_step(*args)
        read(values["loss"])
        return state, values

    around_steps(monkeypatch, act)
    with pytest.raises(RuntimeError, match="Disallowed device-to-host transfer"):
        main.run(config(), str(tmp_path))


@pytest.mark.parametrize(
    "stage_name",
    [
        "labs_dae",
        *(
            pytest.param(x, marks=FULL)
            for x in ("classify", "segment", "mae", "ecg", "distill")
        ),
    ],
)
def test_no_stage_has_a_hidden_transfer(stage_name, guarded_to_the_host, tmp_path):
    folders = tiny.write_folders(tmp_path / "models")
    fields = {"num_devices": 2, "best": "val/loss"}
    main.run(runs.config(stage_name, folders, **fields), str(tmp_path / "run"))
    assert (tmp_path / "run" / "best.json").exists()


@pytest.mark.parametrize(
    "count", [pytest.param(0, marks=FULL), pytest.param(1, marks=FULL), 2]
)
def test_error_of_a_batch_ends_the_run_at_its_step(count, tmp_path, monkeypatch):
    original = pipeline.train_batches

    class Broken:
        """Batch 5, of update 6, cannot be read."""

        def __init__(self, stream):
            self._stream, self._read = stream, 0

        def __next__(self):
            self._read += 1
            if self._read == 6:
                raise PacxError("film.png: unreadable")
            return next(self._stream)

        def close(self):
            self._stream.close()

    monkeypatch.setattr(
        pipeline, "train_batches", lambda *a, **k: Broken(original(*a, **k))
    )
    with pytest.raises(PacxError, match="film.png: unreadable"):
        main.run(config(data__prefetch_to_device=count), str(tmp_path))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert runs.state(tmp_path)["['step']"] == 3
    monkeypatch.setattr(pipeline, "train_batches", original)
    main.run(config(data__prefetch_to_device=count), str(tmp_path))
    assert goodput.read(str(tmp_path))["reached_step"] == runs.STEPS
    threads = [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
