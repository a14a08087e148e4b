"""Cases of Stage 2: adapters, heads, losses."""

from __future__ import annotations

import copy

import numpy as np

from tests.parity import making, sizes
from tests.parity.making import Case


def normalized(images: np.ndarray) -> np.ndarray:
    x = images.astype(np.float32) / np.float32(255)
    return (x - np.float32(sizes.MEAN)) / np.float32(sizes.STD)


def pacx_model(rng, **fields):
    """Everything of Stage 2, random weights, at our sizes but for `fields`."""
    from tests.parity import torch_modules as tm
    from tests.parity import torch_stage_two as ts

    encoder = tm.Encoder(sizes.PACX_GRID, **(sizes.PACX | fields))
    widths = sizes.PACX_ECG, sizes.PACX_LABS, sizes.PACX_SHARED
    model = ts.Pacx(encoder, *widths, sizes.PACX_RANK, sizes.PACX_ALPHA)
    making.fill(model, rng)
    return model.eval()  # no dropout: frameworks draw differently


def pacx_inputs(rng, b: int) -> Case:
    side = sizes.PACX["patch"] * sizes.PACX_GRID[0]
    images = rng.integers(0, 256, (b, side, side, 3), dtype=np.uint8)
    ecg = making.half(rng.normal(size=(b, sizes.PACX_ECG)))
    return {"images": images, "ecg": ecg,
            "labs": making.half(rng.normal(size=(b, sizes.PACX_LABS)))}  # fmt: skip


def pacx() -> Case:
    """Stage 2: adapted and merged encoder, heads, losses, and all gradients."""
    from tests.parity import torch_stage_two as ts

    rng = making.rng("pacx")
    model = pacx_model(rng)
    inputs = pacx_inputs(rng, 8)

    def run(net, cast):
        images = cast(making.chw(normalized(inputs["images"])))
        total, parts, out = net(images, *(cast(making.tensor(inputs[m])) for m in
                                          ("ecg", "labs")))  # fmt: skip
        merged = ts.merge(copy.deepcopy(net.encoder))
        out |= {"z_merged": merged(images), "qkv_merged": merged.blocks[1].attn.qkv
                .weight, "loss": total}  # fmt: skip
        return out | parts

    return (
        {f"in/{k}": v for k, v in inputs.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )


def info_nce() -> Case:
    """Smoothed and not, temperature inside and outside of its clamp."""
    from torch import nn

    from tests.parity import torch_stage_two as ts

    rng = making.rng("info_nce")
    za, noise = (rng.normal(size=(16, 6)) for _ in range(2))
    rows = {"za": making.half(za), "zb": making.half(za + 0.5 * noise)}
    case: Case = {f"in/{k}": v for k, v in rows.items()}
    for name, value in sizes.SCALES.items():
        for smoothing in (0.0, 0.02):
            model = nn.ParameterDict({k: making.tensor(v) for k, v in rows.items()})
            model["logit_scale"] = nn.Parameter(making.tensor(np.float32(value)))

            def run(m, cast, smoothing=smoothing, name=name):
                del cast
                loss = ts.info_nce(m["za"], m["zb"], m["logit_scale"], smoothing)
                return {f"{name}_{smoothing}": loss}

            case |= making.both(model, run, (f"{name}_{smoothing}",))
    return case


def cosine_regression() -> Case:
    """With a row shorter than eps, and a target of zeros."""
    from torch import nn

    from tests.parity import torch_stage_two as ts

    rng = making.rng("cosine")
    pred, target = (making.half(rng.normal(size=(6, 9))) for _ in range(2))
    pred[2] *= np.float32(1e-8)
    target[4] = 0
    model = nn.ParameterDict(
        {"pred": making.tensor(pred), "target": making.tensor(target)}
    )

    def run(m, cast):
        del cast
        return {
            "cosine_similarity": ts.cosine_regression(m["pred"], m["target"]),
            "normalize": ts.normalized_regression(m["pred"], m["target"]),
        }

    out = making.both(model, run, ("cosine_similarity", "normalize"))
    return {"in/pred": pred, "in/target": target} | out
