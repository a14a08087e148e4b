"""Stage 3: masks from the patch tokens of a frozen X-ray encoder."""

from __future__ import annotations

import dataclasses

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import losses
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vit
from pacx_jax.models.heads import SegmentationDecoder
from pacx_jax.types import Array, Objective, Params

EPS = 1e-6  # in every Dice and IoU: an empty mask that is found empty counts 1


SHOWN = ("loss", "dice")


def make(config, mesh: Mesh | None = None) -> Objective:
    """Builds a convolutional decoder on the frozen encoder's patch tokens.

      loss = bce_weight BCE + dice_weight (1 - Dice)
      Dice = (2 sum p t + eps) / (sum p + sum t + eps),  p = sigmoid(logits)

    BCE is the mean over all pixels. The sums of Dice run over the whole batch, so the
    loss depends somewhat on the batch size, like the reference's.
    """
    del mesh
    if not config.model_init:
        raise PacxError(
            "config.model_init is empty: give the encoder to start from, a finished "
            "run's workdir or a folder of pacx_jax.convert"
        )
    folder = model_folder.load(config.model_init, "vit")
    image_statistics.check_size(folder, config.model_init, config.data)
    encoder = folder.module(config.dtype).clone(**vit.ways(config))
    patch, size = folder.architecture["patch_size"], config.data.image_size
    decoder = SegmentationDecoder(widths(patch, config.decoder.width))
    mean, std = image_statistics.chosen(folder, config.data)
    bce_weight, dice_weight = config.loss.bce_weight, config.loss.dice_weight

    def init(key):
        image = jnp.zeros((1, size, size, encoder.channels))
        params = encoder.init(key, image)["params"]
        tokens = jnp.zeros((1, size // patch, size // patch, encoder.width))
        return {"encoder": params, "decoder": decoder.init(key, tokens)["params"]}

    def logits(params, batch):
        images = normalize(batch["image"], mean, std)
        tokens = encoder.apply({"params": params["encoder"]}, images)[:, 1:]
        grid = einops.rearrange(tokens, "b (h w) d -> b h w d", h=size // patch)
        masks = decoder.apply({"params": params["decoder"]}, losses.wide(grid))
        return losses.wide(masks[..., 0])

    def loss(params, batch, key, *, train):
        del key, train  # no dropout
        each = sums(logits(params, batch), batch["target"])
        bce = each["bce"].mean()
        soft = soft_dice(each)
        value = bce_weight * bce + dice_weight * (1 - soft)
        return value, {"bce": bce, "soft_dice": soft}

    def outputs(params, batch, key):
        del key
        return sums(logits(params, batch), batch["target"])

    def summarize(outputs):
        return summary(outputs, config.global_batch_size, bce_weight, dice_weight)

    return Objective(
        init=init,
        trainable=lambda path: path.startswith("decoder/"),
        loss=loss,
        outputs=outputs,
        summarize=summarize,
        pretrained={"encoder": config.model_init},
        entries=("image", "mask"),
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder, and the decoder of masks beside it."""
    del labels
    model = model_folder.trained_further(config, params["encoder"])
    channels = widths(model.architecture["patch_size"], config.decoder.width)
    about = {"encoder_width": model.width, "widths": list(channels)}
    heads = Heads("segment", about, {"decoder": params["decoder"]})
    return dataclasses.replace(model, heads=heads)


def widths(patch_size: int, width: int) -> tuple[int, ...]:
    """Channels of the decoder that doubles the grid up to the pixels of a patch.

    >>> widths(16, 256)  # the reference's
    (256, 128, 64, 32, 1)

    Raises:
      PacxError: the patch's side is no power of two, or `width` is too small.
    """
    doublings = patch_size.bit_length() - 1
    if patch_size != 2**doublings or doublings < 1:
        raise PacxError(
            f"the encoder's patch_size is {patch_size}: masks are made by doubling its "
            "side, so it must be a power of two; take another config.model_init"
        )
    if width >> (doublings - 1) < 1:
        raise PacxError(
            f"config.decoder.width is {width}: it is halved {doublings - 1} times; "
            f"give at least {2 ** (doublings - 1)}"
        )
    return (*(width >> i for i in range(doublings)), 1)


def sums(logits: Array, target: Array) -> dict[str, Array]:
    """Sums that all losses and metrics are built from, (b,) float32 each.

    Args:
      logits: (b, h, w).
      target: (b, h, w), 0 or 1.

    Returns:
      bce: mean over the image's pixels of the binary cross-entropy.
      soft_hits, soft_called: sums of p t and p, p = sigmoid(logits).
      hits, called, truth: number of pixels that are called (p > 0.5) and in the
        target, called, and in the target.
    """
    t = losses.wide(target)
    p, called = jax.nn.sigmoid(logits), losses.wide(logits > 0)
    bce = jnp.maximum(logits, 0) - logits * t + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return {
        "bce": bce.mean((1, 2)),
        "soft_hits": (p * t).sum((1, 2)),
        "soft_called": p.sum((1, 2)),
        "hits": (called * t).sum((1, 2)),
        "called": called.sum((1, 2)),
        "truth": t.sum((1, 2)),
    }


def soft_dice(each: dict[str, Array]) -> Array:
    """Dice of probabilities, pooled over all examples of `sums`."""
    total = each["soft_called"].sum() + each["truth"].sum()
    return (2 * each["soft_hits"].sum() + EPS) / (total + EPS)


def overlap(hits, called, truth) -> dict[str, np.ndarray]:
    """Dice and IoU from counts of pixels, any shape."""
    return {
        "dice": (2 * hits + EPS) / (called + truth + EPS),
        "iou": (hits + EPS) / (called + truth - hits + EPS),
    }


def summary(
    outputs: dict[str, np.ndarray],
    batch_size: int,
    bce_weight: float = 1.0,
    dice_weight: float = 1.0,
) -> dict[str, float]:
    """Loss, Dice and IoU of a split.

    `dice` and `iou` pool the pixels of all images; `_per_image` is their mean over
    images. `_per_batch` is what the reference reports (D32): pooled over each batch,
    then averaged with the batch sizes as weights, so it depends on `batch_size`.
    """
    each = {k: np.asarray(v, np.float64) for k, v in outputs.items()}
    counts = [each[k] for k in ("hits", "called", "truth")]
    starts = np.arange(0, len(counts[0]), batch_size)
    batches = overlap(*(np.add.reduceat(c, starts) for c in counts))
    sizes = np.diff([*starts, len(counts[0])])
    loss = bce_weight * each["bce"].mean() + dice_weight * (1 - soft_dice(each))
    result = {"loss": loss, **overlap(*(c.sum() for c in counts))}
    for name, values in overlap(*counts).items():
        result[f"{name}_per_image"] = values.mean()
    for name, values in batches.items():
        result[f"{name}_per_batch"] = np.average(values, weights=sizes)
    return {name: float(value) for name, value in result.items()}
