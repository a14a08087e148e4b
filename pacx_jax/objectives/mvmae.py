"""MVMAE: reconstruct the masked patches of a study's views, and align the views.

With V the views that a study has, P their pairs, and alpha the mask ratio
(arXiv 2511.22294):

  loss = mean over studies of  L_rec + beta L_align  [+ caption_weight L_caption]
  L_rec   = 1/|V| sum_v  MAE loss of view v, masked on its own
  L_align = 1/(1-alpha) 1/|P| sum_{u<v} mean_d (z_u - z_v)^2,  0 for a single view

z is the mean of a view's encoder tokens, L2-normalised. beta rises from 0 with the
step. With `config.caption` a text decoder predicts the report from the visible tokens
of one view (`models.caption`). Padded views and missing reports have no loss and give
no gradient. docs/mvmae.md compares the paper, its code, and this.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import losses, sharding
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae, vit
from pacx_jax.objectives import captioning
from pacx_jax.objectives import mae as mae_objective
from pacx_jax.types import Array, Objective, Params

SHOWN = ("loss", "cosine", "cosine_of_others")
_CHOICES = {
    "beta_schedule": ("sigmoid", "linear", "constant"),
    "align": ("mse", "cosine", "infonce"),
    "align_tokens": ("mean_all", "cls", "mean_patches"),
    "align_reduction": ("pairs", "views_squared"),
    "reconstruction_reduction": ("views", "max_views"),
}


def make(config, mesh: Mesh) -> Objective:
    """The MVMAE objective of `config`, on studies of at most `data.max_views` views."""
    _check(config)
    model = mae.from_config(
        config.model, config.dtype, vit.ways(config), config.data.image_size
    )
    captioner = captioning.make(config)
    size, patch = config.data.image_size, config.model.patch_size
    channels, n = config.data.channels, (size // patch) ** 2
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    ratio, settings = config.loss.mask_ratio, config.loss

    def init(key):
        images = jnp.zeros((1, size, size, channels))
        ids_keep, ids_restore, _ = mae.random_masking(key, jnp.arange(1), n, ratio)
        view = jnp.zeros(1, jnp.int32)
        params = model.init(key, images, ids_keep, ids_restore, view=view)["params"]
        if captioner is not None:
            params = {**params, **captioner.init(key, ids_keep)}
        return params

    def encode(params, batch, key):
        """Views as rows (b v, ...): reconstruction losses, tokens, kept patches."""
        b, v = batch["view"].shape
        images = normalize(batch["images"], mean, std)
        images = sharding.constrain_rows(images.reshape(b * v, *images.shape[2:]))
        rows = sharding.row_numbers(batch)[:, None] * v + jnp.arange(v)
        ids_keep, ids_restore, _ = mae.random_masking(key, rows.reshape(-1), n, ratio)
        view, masked = batch["view"].reshape(-1), mae.masked_ids(ids_keep, ids_restore)
        target = mae.patch_targets(images, patch, settings.norm_pix_loss, masked)
        pred, tokens = model.apply(
            {"params": {k: params[k] for k in ("encoder", "decoder")}},
            images,
            ids_keep,
            ids_restore,
            view,
            method=_reconstruct,
        )
        each = mae.reconstruction_loss(pred, target).reshape(b, v)
        return each, tokens, ids_keep, target

    def rec_of(each, view_mask):
        """(b, v) losses of views -> (b,) losses of studies."""
        total = (each * view_mask).sum(1)
        if settings.reconstruction_reduction == "max_views":
            return total / each.shape[1]
        return total / losses.known(view_mask, axis=1)

    def loss(params, batch, key, *, train, step):
        view_mask = batch["view_mask"]
        each, tokens, ids_keep, _ = encode(params, batch, key)
        rec = rec_of(each, view_mask)
        total = settings.reconstruction_weight * rec.mean()
        metrics = {"reconstruction": rec.mean()}
        if settings.beta:
            beta = beta_at(config, step)
            align = alignment(config, mesh, embeddings(tokens, view_mask, settings))
            total += beta * align
            metrics |= {"align": align, "beta": beta}
        if captioner is not None:
            caption, found = captioner.loss(params, batch, tokens, ids_keep, key, train)
            total += config.caption.weight * caption
            metrics |= found
        return total, metrics

    def outputs(params, batch, key):
        view_mask = batch["view_mask"]
        each, tokens, ids_keep, target = encode(params, batch, key)
        z, _ = embeddings(tokens, view_mask, settings)
        # The loss of predicting the mean of what is masked: a bound to beat.
        flat = ((target - target.mean((-2, -1), keepdims=True)) ** 2).mean((-2, -1))
        result = {
            "loss": rec_of(each, view_mask),
            "loss_of_mean": rec_of(flat.reshape(each.shape), view_mask),
            "z": z,
            "view_mask": view_mask,
        }
        if captioner is not None:
            result |= captioner.outputs(params, batch, tokens, ids_keep)
        return result

    def images(params, batch, key):
        # All views of two studies: original, as the encoder sees it, and filled in.
        raw = batch["images"][:2].reshape(-1, size, size, channels)
        x, view = normalize(raw, mean, std), batch["view"][:2].reshape(-1)
        drawn = mae.random_masking(key, jnp.arange(len(raw)), n, ratio)
        both = {k: params[k] for k in ("encoder", "decoder")}
        pred = model.apply({"params": both}, x, *drawn[:2], view=view)
        shown = mae.pictures(x, pred, drawn[2], patch, settings.norm_pix_loss)
        pixels = [(p * jnp.asarray(std) + jnp.asarray(mean)) * 255 for p in shown]
        row = jnp.concatenate([raw, *pixels], axis=2)
        row = jnp.clip(jnp.round(row), 0, 255).astype(jnp.uint8)
        return {"reconstruction": jnp.broadcast_to(row, (*row.shape[:3], 3))}

    def summarize(outputs):
        found = {k: float(outputs[k].mean()) for k in ("loss", "loss_of_mean")}
        found |= closeness(outputs["z"], outputs["view_mask"])
        return found | (captioner.summarize(outputs) if captioner else {})

    parts = tuple(config.model_init_parts) if config.model_init else ()
    infonce = settings.beta and settings.align == "infonce"
    return Objective(
        init=init,
        trainable=lambda path: True,
        loss=loss,
        by_step=True,
        outputs=outputs,
        summarize=summarize,
        pretrained={part: config.model_init for part in parts},
        entries=("images",),
        readers=captioner.readers if captioner else (),
        weight=None if captioner or infonce else lambda batch: len(batch["view"]),
        images=images,
    )


def _reconstruct(module: mae.MAE, images, ids_keep, ids_restore, view):
    size = module.encoder.patch_size
    grid = (images.shape[1] // size, images.shape[2] // size)
    tokens = module.encoder(images, ids_keep, view=view)
    return module.decoder(tokens, ids_restore, grid, True, view=view), tokens


def beta_at(config, step: Array) -> Array:
    """The weight of the alignment after `step` updates, from 0 to `loss.beta`.

    It rises from the end of the learning rate's warm-up to the last step. "sigmoid":
    s(k (t - 1/2)) over t in [0, 1], shifted and scaled to start at 0 and end at 1;
    k is `loss.beta_steepness`.
    """
    settings, warmup = config.loss, config.optim.warmup_steps
    if settings.beta_schedule == "constant":
        return jnp.float32(settings.beta)
    span = max(config.total_steps - warmup, 1)
    t = jnp.clip((step - warmup) / span, 0.0, 1.0)
    if settings.beta_schedule == "sigmoid":
        k = settings.beta_steepness
        low, high = (1 / (1 + np.exp(-k * x)) for x in (-0.5, 0.5))
        t = (jax.nn.sigmoid(k * (t - 0.5)) - low) / (high - low)
    return jnp.float32(settings.beta) * jnp.maximum(t, 0.0)


def embeddings(tokens: Array, view_mask: Array, settings) -> tuple[Array, Array]:
    """Encoder tokens (b v, 1 + k, d) -> z (b, v, d), of unit length, and the mask."""
    b, v = view_mask.shape
    tokens = losses.wide(tokens)
    pooled = {
        "mean_all": lambda: tokens.mean(1),
        "cls": lambda: tokens[:, 0],
        "mean_patches": lambda: tokens[:, 1:].mean(1),
    }[settings.align_tokens]()
    return losses.l2_normalize(pooled).reshape(b, v, -1), view_mask


def alignment(config, mesh: Mesh, embedded: tuple[Array, Array]) -> Array:
    """The alignment loss () of z (b, v, d) with its view mask (b, v).

    "mse" and "cosine" are means over studies, of which those with a single view have
    0. "infonce" contrasts slot u of all studies with slot v, and weights each pair of
    slots by the number of studies that have both.
    """
    (z, mask), settings = embedded, config.loss
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    if not pairs:
        return jnp.zeros(())
    both = jnp.stack([mask[:, u] * mask[:, v] for u, v in pairs], axis=1)
    if settings.align == "infonce":
        scale = jnp.float32(1 / settings.temperature)
        terms = [
            losses.info_nce(
                z[:, u],
                {"other": z[:, v]},
                scale,
                label_smoothing=0.0,
                mesh=mesh,
                present={"other": both[:, i]},
            )["other"]
            for i, (u, v) in enumerate(pairs)
        ]
        counts = both.sum(0)
        return (jnp.stack(terms) * counts).sum() / losses.known(counts)
    if settings.align == "mse":
        apart = [((z[:, u] - z[:, v]) ** 2).mean(-1) for u, v in pairs]
    else:
        apart = [1 - (z[:, u] * z[:, v]).sum(-1) for u, v in pairs]
    total = (jnp.stack(apart, axis=1) * both).sum(1)
    if settings.align_reduction == "views_squared":  # both orders, and the diagonal
        total = 2 * total / losses.known(mask, axis=1) ** 2
    else:
        total = total / losses.known(both, axis=1)
    if settings.align_by_visible:
        total = total / (1 - settings.mask_ratio)
    return total.mean()


def closeness(z: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Mean cosine of the first two views of a study, and of two studies' views.

    If both are near 1, the views are not aligned: all embeddings are alike.
    """
    rows = np.flatnonzero(mask[:, 1] > 0) if mask.shape[1] > 1 else np.array([], int)
    if len(rows) < 2:
        return {}
    first, second = z[rows, 0], z[rows, 1]
    others = np.roll(second, 1, axis=0)
    return {
        "cosine": float((first * second).sum(-1).mean()),
        "cosine_of_others": float((first * others).sum(-1).mean()),
    }


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports the encoder, and the image decoder beside it; the text decoder goes."""
    return mae_objective.export(config, params, labels)


def _check(config) -> None:
    for field, choices in _CHOICES.items():
        value = config.loss[field]
        if value not in choices:
            raise PacxError(
                f"config.loss.{field} {value!r}: choose {', '.join(choices)}"
            )
    for field in ("beta", "beta_steepness", "temperature"):
        if not config.loss[field] >= 0:
            raise PacxError(
                f"config.loss.{field} is {config.loss[field]}: give at least 0"
            )
    if config.data.group != "study":
        raise PacxError(
            f"config.data.group {config.data.group!r}: this objective takes studies; "
            "give study"
        )
    wanted = config.data.channels
    for field in ("mean", "std"):
        if len(config.data[field]) != wanted:
            raise PacxError(
                f"config.data.{field} has {len(config.data[field])} numbers for "
                f"config.data.channels {wanted}"
            )
