"""Cases of other people's encoders: tokens, and gradients of two."""

from __future__ import annotations

from tests.parity import making, sizes
from tests.parity.making import Case


def _case(name: str, model, larger: bool = False, gradient: bool = False) -> Case:
    import torch

    rng = making.rng(name)
    making.fill(model, rng)
    with torch.no_grad():  # which `fill` leaves alone
        drawn = making.half(0.5 * rng.normal(size=tuple(model.pos_embed.shape)))
        model.pos_embed.copy_(making.tensor(drawn))
    patch, names = sizes.FOREIGN["patch"], {"images": sizes.FOREIGN["side"]}
    if larger:
        names["larger"] = sizes.FOREIGN_LARGER
    inputs = {
        k: making.half(rng.normal(size=(2, side * patch, side * patch, 3)))
        for k, side in names.items()
    }

    def run(module, cast):
        out = {k: module(cast(making.chw(x))) for k, x in inputs.items()}
        return out | ({"loss": (out["images"] ** 3).mean()} if gradient else {})

    return (
        {f"in/{k}": v for k, v in inputs.items()}
        | making.state(model, "state")
        | making.both(model, run, ("loss",) * gradient)
    )


def dinov2() -> Case:
    """Registers and SwiGLU, also at a larger size."""
    from tests.parity import torch_foreign as tf

    more = {"registers": sizes.REGISTERS, "hidden": sizes.DINOV2_HIDDEN}
    return _case("dinov2", tf.DINOv2(**sizes.FOREIGN, **more), larger=True)


def dinov2_plain() -> Case:
    """Without registers, of a plain MLP, also at a larger size."""
    from tests.parity import torch_foreign as tf

    model = tf.DINOv2(**sizes.FOREIGN, registers=0, hidden=0)
    return _case("dinov2_plain", model, larger=True, gradient=True)


def eva02() -> Case:
    """The tokens after `norm`."""
    return _case("eva02", _eva(mean=False))


def eva02_mean() -> Case:
    """The patches' mean after `fc_norm`."""
    return _case("eva02_mean", _eva(mean=True), gradient=True)


def densenet() -> Case:
    """The last feature map of torchxrayvision's, and its mean."""
    import torch

    from tests.parity import torch_foreign as tf

    rng, model = making.rng("densenet"), tf.DenseNet(**sizes.DENSENET).eval()
    making.fill(model, rng)
    images = making.half(rng.normal(size=(2, *sizes.DENSENET_SIDES, 1)))

    def run(module, cast):
        with torch.no_grad():
            features = module(cast(making.chw(images)))
        cells = features.flatten(2).transpose(1, 2)
        return {"images": torch.cat([features.mean((2, 3))[:, None], cells], 1)}

    found = {"in/images": images} | making.state(model, "state")
    return found | making.both(model, run)


def _eva(mean: bool):
    from tests.parity import torch_foreign as tf

    more = {"hidden": sizes.EVA_HIDDEN, "reference": sizes.EVA_REFERENCE}
    return tf.EVA02(**sizes.FOREIGN, **more, mean=mean)
