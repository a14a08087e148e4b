"""Optimizer and learning-rate schedule from `config.optim`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging

from pacx_jax.errors import PacxError
from pacx_jax.types import Params


def settings(config):
    """`config.optim`, with peak_lr scaled if `base_batch_size` is set (D19).

    lr = peak_lr * global_batch_size / base_batch_size; at 256 the original MAE's rule.
    """
    optim = config.optim
    if optim.base_batch_size < 0:
        raise PacxError(
            f"config.optim.base_batch_size {optim.base_batch_size}: give 0 (off), or "
            "the batch size that peak_lr is for"
        )
    if not optim.base_batch_size:
        return optim
    scaled = ml_collections.ConfigDict(optim.to_dict())
    scaled.peak_lr *= config.global_batch_size / optim.base_batch_size
    return scaled


def schedule(optim, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to `min_ratio` of the peak, as step -> lr.

    With `steps_per_epoch` > 0 the rate changes once an epoch, like the reference:
    (e + 1) / warm-up epochs, then 0.5 (1 + cos(pi (e - w) / (E - w))). Otherwise the
    same formula runs on steps. `warmup_from_zero` starts at 0 (the reference's DAE),
    `warmup_start` at that share of the peak.
    """
    if optim.warmup_steps >= total_steps:
        logging.log_first_n(  # fine for a short trial of a recipe
            logging.WARNING,
            "config.optim.warmup_steps %d is not below total_steps %d: the learning "
            "rate never reaches its peak",
            1,
            optim.warmup_steps,
            total_steps,
        )
    unit = max(optim.steps_per_epoch, 1)
    warmup = optim.warmup_steps / unit
    total = total_steps / unit
    offset = 0.0 if optim.warmup_from_zero else 1.0
    low = optim.get("warmup_start", 0.0)  # not in older workdirs

    def lr(step):
        t = jnp.floor(step / unit)
        rising = (t + offset) / max(warmup, 1.0)
        if low:
            rising = low + (1 - low) * rising
        progress = (t - warmup) / max(total - warmup, 1e-9)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        ratio = jnp.where(t < warmup, rising, jnp.maximum(cosine, optim.min_ratio))
        return optim.peak_lr * ratio

    return lr


def decay_mask(params: Params) -> Params:
    """True for parameters with weight decay: all but biases, norms and scalars.

    cls_token and mask_token have three axes and are decayed, as in the reference.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make(optim, total_steps: int) -> optax.GradientTransformation:
    """AdamW, optionally clipped by global norm; decay="all" is the reference (D17)."""
    if optim.decay not in ("kernels", "all"):
        raise PacxError(f"config.optim.decay {optim.decay!r}: choose kernels or all")
    steps = []
    if optim.clip_norm > 0:
        steps.append(optax.clip_by_global_norm(optim.clip_norm))
    steps.append(
        optax.adamw(
            schedule(optim, total_steps),
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            mask=decay_mask if optim.decay == "kernels" else None,
        )
    )
    if optim.encoder_lr_ratio != 1.0:  # fine-tuning: a slower backbone
        steps.append(optax.stateless(_scale_encoder(optim.encoder_lr_ratio)))
    if (decay := optim.get("layer_decay", 1.0)) != 1.0:  # not in older workdirs
        steps.append(layerwise(decay))
    return optax.chain(*steps)


def layerwise(decay: float) -> optax.GradientTransformation:
    """Multiplies updates of `encoder` by decay^(L + 1 - i), i being the layer.

    i is 0 for what comes before the L blocks (patches, tokens, positions), 1 to L for
    the blocks, and L + 1 for the last norm, as for what stands outside of the encoder
    (Clark 2020; BEiT; MAE's fine-tuning).

    Raises:
      PacxError: decay is not in (0, 1], or no block of an encoder is trained.
    """
    if not 0 < decay <= 1:
        raise PacxError(
            f"config.optim.layer_decay is {decay}: give above 0 and at most 1"
        )

    def init(params):
        _depth(params)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        depth = _depth(updates)

        def scale(path, u):
            names = [key.key for key in path]
            if names[0] != "encoder" or names[1] == "norm":
                return u
            block = names[1].startswith("block_")
            layer = int(names[1].removeprefix("block_")) + 1 if block else 0
            return u * decay ** (depth + 1 - layer)

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _depth(params: Params) -> int:
    """Number of blocks of the encoder, counted to the last one that is trained."""
    blocks = [k for k in params.get("encoder", {}) if k.startswith("block_")]
    if not blocks:
        raise PacxError(
            "config.optim.layer_decay is below 1, and no block of an encoder is "
            "trained: give 1, or --config.tuning=full"
        )
    return max(int(k.removeprefix("block_")) for k in blocks) + 1


def _scale_encoder(ratio: float):
    def scale(updates, params):
        del params
        return {
            k: jax.tree.map(lambda u: u * ratio, v) if k == "encoder" else v
            for k, v in updates.items()
        }

    return scale
