"""One train step of every stage at "mu" size, on any mesh: what mesh tests compare."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pacx_jax import objectives, optim, sharding, step
from tests import tiny
from tests.reliability import runs

STAGES = ("mae", "mvmae", "v2t", "vq", "causal", "masked", "labs_dae", "ecg",
          "distill", "classify", "segment")  # fmt: skip


def config(stage: str, folders: dict[str, str], **fields):
    """A tiny config; LoRA's and the heads' dropout are on."""
    c = runs.config(stage, folders, **({"global_batch_size": 16} | fields))
    if stage in ("ecg", "classify"):
        c.data.label_columns = ("a", "b")
    return c


def batch(stage: str, b: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Random examples, as `config`'s objective takes them; masks are uneven."""
    rng = np.random.default_rng(seed)
    grey = stage in ("vq", "causal", "masked")
    size, channels = 16 if grey or stage == "mae" else 32, 1 if grey else 3
    entries = {
        "image": rng.integers(0, 256, (b, size, size, channels), np.uint8),
        "images": rng.integers(0, 256, (b, 2, 16, 16, 1), dtype=np.uint8),
        "view": rng.integers(0, 3, (b, 2), dtype=np.int32),
        "view_mask": np.stack([np.ones(b), np.arange(b) % 3 > 0], 1),
        "target": np.uint8(rng.random((b, 32, 32)) < 0.4),
        "report_tokens": report_tokens(b, rng),
        "report_present": np.float32(np.arange(b) % 4 > 0),
        "labs": rng.random((b, 50)),
        "labs_mask": (rng.random((b, 50)) < rng.random((b, 1))) * 1.0,
        "ecg": rng.normal(size=(b, 64, 12)),
        "ecg_embedding": rng.normal(size=(b, 16)),
        "labs_embedding": rng.normal(size=(b, 8)),
        "labels": rng.integers(0, 2, (b, 2)) * 1.0,
        "label_mask": (rng.random((b, 2)) < 0.6) * 1.0,
    }
    of = {
        "mae": ("image",),
        "mvmae": ("images", "view", "view_mask"),
        "vq": ("image",),
        "v2t": ("images", "view", "view_mask", "report_tokens", "report_present"),
        "causal": ("image", "report_tokens", "report_present"),
        "masked": ("image", "report_tokens", "report_present"),
        "labs_dae": ("labs", "labs_mask"),
        "ecg": ("ecg", "labels", "label_mask"),
        "distill": ("image", "ecg_embedding", "labs_embedding"),
        "classify": ("image", "labels", "label_mask"),
        "segment": ("image", "target"),
    }
    return {name: entries[name] for name in of[stage]}


def report_tokens(b: int, rng) -> np.ndarray:
    """[CLS] words [SEP] and padding, (b, 16), of 2 to 14 words."""
    tokens = np.zeros((b, 16), np.int32)
    for row, n in zip(tokens, rng.integers(2, 15, b), strict=True):
        row[: n + 2] = [2, *rng.integers(4, 40, n), 3]
    return tokens


def keep_gradients():
    """Hands gradients on unchanged, with a copy in its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params=None: (grads, grads),
    )


def jitted(c, mesh, dtype: str = "float32", optimizer: bool = True):
    """(train step, its arguments) of a config on a mesh; in float64 under x64.

    The mesh may be of several processes: each calls this.

    Args:
      optimizer: without it gradients are the updates, and less is compiled.
    """
    c = tiny.copy_of(c)
    c.dtype = dtype
    objective = objectives.make(c, mesh)
    rest = [optim.make(c.optim, c.total_steps)] if optimizer else []
    tx = optax.chain(keep_gradients(), *rest)
    wide = "float64" if dtype == "float64" else "float32"
    params = jax.tree.map(lambda p: p.astype(wide), tiny.random_start(objective))
    state = step.make_state(params, objective, tx)
    shardings = sharding.tree_shardings(state, mesh)
    update = step.make_train_step(objective, tx, mesh, shardings, c.accumulate)
    rows = sharding.local_rows(c.global_batch_size, mesh)  # all, in one process
    stage = "v2t" if "caption" in c and c.caption.weight else c.objective
    stage = c.stage if stage == "unified" else stage
    examples = batch(stage, c.global_batch_size)
    # In float64 images are wide too: XLA rounds float32 pixels as it fuses them.
    kept = (np.int32, np.uint8) if wide == "float32" else (np.int32,)
    examples = {
        k: (v if v.dtype in kept else v.astype(wide))[rows] for k, v in examples.items()
    }
    state = sharding.put_tree(state, shardings)
    return update, (state, sharding.put_batch(examples, mesh), jax.random.key(1))


def one_step(c, mesh, dtype: str = "float32", optimizer: bool = True):
    """(metrics, gradients by path, state after it) of one real train step."""
    update, args = jitted(c, mesh, dtype, optimizer)
    state, metrics = update(*args)
    grads = tiny.flat(jax.device_get(state.opt_state[0]))
    return {k: float(v) for k, v in metrics.items()}, grads, state


def differences(got, want) -> tuple[float, float]:
    """Largest relative difference of the metrics, and of gradients by leaf norm."""
    (metrics, grads, _), (metrics_want, grads_want, _) = got, want
    assert metrics.keys() == metrics_want.keys() and grads.keys() == grads_want.keys()
    values = [abs(metrics[k] - v) / abs(v) for k, v in metrics_want.items()]
    # A bias of all keys moves each query's scores alike: its gradient is 0, rounded.
    zero = {k for k in grads if k.endswith("k_norm/bias")}
    assert all(np.linalg.norm(grads[k]) < 1e-5 for k in zero)
    leaves = [tiny.relative(grads[k], grads_want[k]) for k in grads.keys() - zero]
    assert all(np.linalg.norm(g) > 0 for g in grads_want.values())
    return max(values), max(leaves)
