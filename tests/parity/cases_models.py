"""Cases of the models: MAE, labs, ECG, attention, Stage 3."""

from __future__ import annotations

import functools

import numpy as np

from tests.parity import making, sizes
from tests.parity.making import Case


def mae_model(rng, **fields):
    """A checkpointed MAE with random weights, at our sizes but for `fields`."""
    from tests.parity import torch_modules as tm

    model = tm.Lightning(tm.MAE(sizes.MAE_GRID, **(sizes.MAE | fields)))
    making.fill(model, rng)
    return model


def mae() -> Case:
    """Encoder on all and on the kept patches, prediction, both losses."""
    rng = making.rng("mae")
    model = mae_model(rng)
    h, w = (sizes.MAE["patch"] * g for g in sizes.MAE_GRID)
    images = making.half(rng.normal(size=(3, h, w, 3)))
    keep, restore, mask = making.masks(
        rng, 3, sizes.MAE_GRID[0] * sizes.MAE_GRID[1], sizes.MAE_KEEP
    )

    def run(module, cast):
        net, x = module.model, cast(making.chw(images))
        pred = net(x, making.tensor(keep), making.tensor(restore))
        loss = functools.partial(net.loss, x, pred, cast(making.tensor(mask)))
        return {
            "tokens": net.encode(x),
            "kept_tokens": net.encode(x, making.tensor(keep)),
            "pred": pred,
            "loss": loss(),
            "norm_pix_loss": loss(norm_pix_loss=True),
        }

    inputs = {"images": images, "keep": keep, "restore": restore, "mask": mask}
    return (
        {f"in/{k}": v for k, v in inputs.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss", "norm_pix_loss"))
    )


def mvmae() -> Case:
    """MVMAE: tokens of three views, all and kept, prediction and loss."""
    from launch.benchmarks import torch_mvmae

    rng = making.rng("mvmae")
    model = torch_mvmae.MVMAE(sizes.MAE_GRID, **sizes.MVMAE)
    making.fill(model, rng)
    h, w = (sizes.MVMAE["patch"] * g for g in sizes.MAE_GRID)
    images, view = making.half(rng.normal(size=(4, h, w, 1))), np.array([2, 0, 1, 0])
    keep, restore, mask = making.masks(
        rng, 4, sizes.MAE_GRID[0] * sizes.MAE_GRID[1], sizes.MAE_KEEP
    )

    def run(net, cast):
        x, views = cast(making.chw(images)), making.tensor(view)
        ids = making.tensor(keep), making.tensor(restore)
        pred = net(x, views, *ids)
        encoder = net.encoders["vision"]
        return {
            "tokens": encoder(x, views),
            "frontal_tokens": encoder(x, 0 * views),
            "kept_tokens": encoder(x, views, ids[0]),
            "pred": pred,
            "loss": net.loss(x, pred, cast(making.tensor(mask))),
        }

    inputs = {"images": images, "view": view, "keep": keep, "restore": restore}
    return (
        {f"in/{k}": v for k, v in inputs.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )


def labs_inputs(rng, b: int):
    """Percentiles, mask (1 = observed), and which entries the corruption drops."""
    mask = (rng.random((b, sizes.LABS["features"])) < 0.7).astype(np.float32)
    drop = ((rng.random(mask.shape) < 0.3) & (mask > 0.5)).astype(np.float32)
    return making.half(rng.random(mask.shape)), mask, drop


def labs() -> Case:
    """Latents with missing values zeroed and raw (D7), corrupted reconstruction."""
    from tests.parity import torch_modules as tm

    rng = making.rng("labs")
    model = tm.Lightning(tm.LabsDAE(**sizes.LABS))
    making.fill(model, rng)
    arrays = labs_inputs(rng, 6)

    def run(module, cast):
        net = module.model
        values, mask, drop = (cast(making.tensor(x)) for x in arrays)
        bits = mask * (1 - drop)
        pred = net(values * bits, bits)[1]
        return {
            "latent": net(values * mask, mask)[0],
            "latent_raw": net(values, mask)[0],
            "pred": pred,
            "loss": tm.masked_mse(pred, values, mask),
        }

    named = dict(zip(("values", "mask", "drop"), arrays, strict=True))
    return (
        {f"in/{k}": v for k, v in named.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )


def ecg() -> Case:
    """Embeddings at 5000 samples and odd lengths; logits and their loss at one."""
    import torch.nn.functional as F

    from tests.parity import torch_modules as tm

    rng = making.rng("ecg")
    model = tm.Net1D(**sizes.ECG)
    making.fill(model, rng)
    model.eval()
    ecgs = {t: making.half(rng.normal(size=(1 if t > 2000 else 2, t, 12)))
            for t in sizes.ECG_LENGTHS}  # fmt: skip
    labels = (rng.random((2, sizes.ECG["classes"])) < 0.5).astype(np.float32)

    def run(net, cast):
        out = {
            f"embedding_{t}": net.features(cast(making.chw(x))) for t, x in ecgs.items()
        }
        out["logits"] = net(cast(making.chw(ecgs[333])))
        out["loss"] = F.binary_cross_entropy_with_logits(
            out["logits"], cast(making.tensor(labels))
        )
        return out

    return (
        {f"in/ecg_{t}": x for t, x in ecgs.items()}
        | {"in/labels": labels}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )


def rollout() -> Case:
    """Attention of every block, and the map that is rolled out of it."""
    from tests.parity import torch_modules as tm
    from tests.parity import torch_stage_two as ts

    rng = making.rng("rollout")
    encoder = tm.Encoder(sizes.ROLLOUT_GRID, **sizes.ROLLOUT)
    making.fill(encoder, rng)
    side = sizes.ROLLOUT["patch"] * sizes.ROLLOUT_GRID[0]
    images = making.half(rng.normal(size=(2, side, side, 3)))

    def run(net, cast):
        attention = ts.probabilities(net, cast(making.chw(images)))
        out = {f"attention_{i}": a for i, a in enumerate(attention)}
        return out | {"map": ts.rollout(attention, sizes.ROLLOUT_SIZE)}

    return (
        {"in/images": images}
        | making.state(encoder, "state")
        | making.both(encoder, run)
    )


def classifier() -> Case:
    """Linear probe: logits, and the gradients of the head and of the backbone."""
    import torch.nn.functional as F

    from tests.parity import torch_modules as tm

    rng = making.rng("classifier")
    encoder = tm.Encoder(sizes.ROLLOUT_GRID, **sizes.ROLLOUT)
    model = tm.Lightning(tm.Classifier(encoder, sizes.CLASSES))
    making.fill(model, rng)
    side = sizes.ROLLOUT["patch"] * sizes.ROLLOUT_GRID[0]
    images = making.half(rng.normal(size=(4, side, side, 3)))
    labels = (rng.random((4, sizes.CLASSES)) < 0.5).astype(np.float32)

    def run(module, cast):
        logits = module.model(cast(making.chw(images)))
        loss = F.binary_cross_entropy_with_logits(logits, cast(making.tensor(labels)))
        return {"logits": logits, "loss": loss}

    inputs = {"in/images": images, "in/labels": labels}
    return inputs | making.state(model, "state") | making.both(model, run, ("loss",))


def segmenter() -> Case:
    """The decoder's logits from the patch tokens."""
    from tests.parity import torch_modules as tm

    rng = making.rng("segmenter")
    encoder = tm.Encoder((2, 3), 16, 8, 1, 2)
    model = tm.Lightning(tm.Segmenter(encoder, (2, 3), sizes.SEGMENT_WIDTHS), True)
    making.fill(model, rng)
    images = making.half(rng.normal(size=(2, 32, 48, 3)))

    def run(module, cast):
        x = cast(making.chw(images))
        return {"tokens": module.model.backbone.encode(x), "logits": module.model(x)}

    return (
        {"in/images": images} | making.state(model, "state") | making.both(model, run)
    )


def text() -> Case:
    """Report decoder: logits without and with positions; loss and its gradients."""
    return _text("text", 0)


def text_positions() -> Case:
    """The same with learned positions."""
    return _text("text_positions", sizes.TEXT_LENGTH)


def _text(name: str, length: int) -> Case:
    from tests.parity import torch_modules as tm

    rng, pad = making.rng(name), sizes.TEXT_PAD
    model = tm.TextDecoder(**sizes.TEXT, length=length)
    making.fill(model, rng)
    tokens = rng.integers(1, sizes.TEXT["vocab"], (4, sizes.TEXT_LENGTH))
    for row, n in enumerate((9, 4, 6, 8)):
        tokens[row, n:] = pad
    present = np.float32([1, 1, 0, 1])
    shape = 4, sizes.TEXT_IMAGE_TOKENS, sizes.TEXT["memory"]
    memory = making.half(rng.normal(size=shape))

    def run(net, cast):
        ids, here = making.tensor(tokens), cast(making.tensor(present))
        logits = net(ids, cast(making.tensor(memory)))
        return {"logits": logits, "loss": tm.caption_loss(logits, ids, here, pad)}

    inputs = {"tokens": tokens, "memory": memory, "present": present}
    return (
        {f"in/{k}": v for k, v in inputs.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )


def unified() -> Case:
    """CheXmix's transformer: rotary positions, an output layer of its own."""
    return _unified("unified", True)


def unified_learned() -> Case:
    """The same with learned positions, tied to the table of embeddings."""
    return _unified("unified_learned", False)


def _unified(name: str, rotary: bool) -> Case:
    from tests.parity import torch_modules as tm

    rng, n = making.rng(name), sizes.UNIFIED_LENGTH
    model = tm.Unified(**sizes.UNIFIED, length=n, rotary=rotary)
    making.fill(model, rng)
    tokens = rng.integers(4, sizes.UNIFIED["vocab"], (3, n))
    for row, length in zip(tokens, (11, 7, 9), strict=True):
        row[length:] = 0

    def run(net, cast):
        ids = making.tensor(tokens)
        logits, layers = net(ids)
        weights = sizes.UNIFIED_TEXT, sizes.UNIFIED_WEIGHTS, 0
        loss = tm.weighted_loss(logits, ids, *weights)
        return {"logits": logits, "layers": layers, "loss": loss}

    return (
        {"in/tokens": tokens}
        | making.state(model, "state")
        | making.both(model, run, ("loss",))
    )
