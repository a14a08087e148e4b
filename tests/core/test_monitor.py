"""What is logged beside the loss: learning rate, norms, adapters' share, images."""

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from pacx_jax import lora, main, optim
from pacx_jax.run import metrics
from tests import tiny
from tests.reliability import runs


def norm(tree):
    return np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in tree.values()))


def images_in(workdir):
    """Tag -> steps of the images in TensorBoard's files."""
    found = {}
    for file in (workdir / "tensorboard").iterdir():
        data, at = file.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, data, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            for value in event.summary.value:
                if value.HasField("image"):
                    found.setdefault(value.tag, []).append(event.step)
                    found["shape"] = (value.image.height, value.image.width)
            at += 16 + size
    return found


def test_logged_steps_have_learning_rate_and_norms_and_some_have_images(
    tmp_path, monkeypatch
):
    runs.use_patients(monkeypatch)
    fields = {"total_steps": 4, "log_every": 2, "eval_every": 2, "save_every": 1}
    fields |= {"images_every": 2, "keep": 4, "num_devices": 2}
    config = runs.config("mae", {}, **fields)
    main.run(config, str(tmp_path))
    rate = optim.schedule(config.optim, config.total_steps)
    rows = {row["step"]: row for row in metrics.read_rows(tmp_path)}
    assert [n for n in rows if "learning_rate" in rows[n]] == [2, 4]
    for n in (2, 4):
        assert rows[n]["learning_rate"] == pytest.approx(float(rate(n - 1)), rel=1e-6)
    before, after = (runs.state(tmp_path, n) for n in (3, 4))
    kept = [k for k in after if k.startswith("['params']")]
    after, before = ({k: tree[k] for k in kept} for tree in (after, before))
    change = {k: after[k] - before[k] for k in after}
    assert rows[4]["param_norm"] == pytest.approx(norm(after), rel=1e-5)
    assert rows[4]["update_norm"] == pytest.approx(norm(change), rel=1e-3)
    # Four X-rays of 16 pixels, one above the other: raw, masked, filled in.
    found = images_in(tmp_path)
    assert found == {"reconstruction": [4], "shape": (4 * 16, 3 * 16)}


def test_share_of_the_adapters_is_that_of_the_merged_change():
    rng = np.random.default_rng(0)
    params = {"block": {"qkv": {"kernel": rng.normal(size=(12, 30))}}}
    params["other"] = {"kernel": rng.normal(size=(5, 5))}
    pair = {"a": rng.normal(size=(12, 4)), "b": rng.normal(size=(4, 30))}
    adapters = {"block": {"qkv": pair}}
    merged = lora.merge(params, adapters, 16.0)
    base = params["block"]["qkv"]["kernel"]
    want = tiny.relative(merged["block"]["qkv"]["kernel"], base)
    got = jax.jit(lora.share, static_argnums=2)(params, adapters, 16.0)
    assert float(got) == pytest.approx(want, rel=1e-5)
