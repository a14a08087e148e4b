"""What the parity cases are made with: draws, weights, states, gradients."""

from __future__ import annotations

import copy
import zlib

import numpy as np

Case = dict[str, np.ndarray]


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def half(x: np.ndarray) -> np.ndarray:
    """Rounded so that float16 holds it exactly: half the space on disk."""
    return x.astype(np.float16).astype(np.float32)


def fill(model, rng) -> None:
    """Random weights: no bias 0, no scale 1, no adapter's B 0. Positions stay."""
    import torch

    for name, value in model.state_dict().items():
        if name.endswith(("pos_embed", "num_batches_tracked", "logit_scale", "std")):
            continue
        x = rng.normal(size=tuple(value.shape))
        if value.ndim >= 2 and not name.endswith("token"):
            x /= np.sqrt(np.prod(value.shape[1:]))
        elif name.endswith("running_var"):
            x = 0.5 + np.abs(x)
        else:
            x = 0.3 * x + name.endswith("weight")
        with torch.no_grad():
            value.copy_(torch.from_numpy(half(x)))


def tensor(x: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)).reshape(x.shape)


def chw(x: np.ndarray):
    return tensor(np.moveaxis(x, -1, 1))


def state(model, prefix: str) -> Case:
    return {f"{prefix}/{k}": v.detach().numpy().copy()
            for k, v in model.state_dict().items()}  # fmt: skip


def grads(model, loss, prefix: str) -> Case:
    """Gradients of everything trainable that the loss depends on."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {f"{prefix}/{k}": p.grad.detach().numpy().astype(np.float32)
            for k, p in model.named_parameters() if p.grad is not None}  # fmt: skip


def both(model, run, grads_of=()) -> Case:
    """`run(model, cast)` -> {name: tensor}, in float32 and float64."""
    found = {}
    for suffix, made in (("", model), ("64", copy.deepcopy(model).double())):

        def cast(x, wide=suffix):
            return x.double() if wide and x.is_floating_point() else x

        out = run(made, cast)
        found |= {f"out{suffix}/{k}": v.detach().numpy().copy() for k, v in out.items()}
        for name in grads_of if suffix else ():
            found |= grads(made, out[name], f"grad/{name}")
    return found


def masks(rng, b: int, n: int, k: int):
    """ids_keep (b, k), ids_restore (b, n), mask (b, n), 1 = removed."""
    shuffle = np.argsort(rng.random((b, n)), axis=1)
    restore = np.argsort(shuffle, axis=1)
    return shuffle[:, :k].copy(), restore, (restore >= k).astype(np.float32)
