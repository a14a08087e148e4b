"""An image tokenizer: X-rays through a codebook and back (docs/chexmix.md).

No gradient moves the codes. They are moving averages of the features that they stand
for, over all devices (VQ-VAE, van den Oord 2017, appendix A.1).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import losses, sharding
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vq
from pacx_jax.models.discriminator import Discriminator
from pacx_jax.objectives import image_scores
from pacx_jax.types import Array, Metrics, Objective, Params

SHOWN = ("loss", "psnr", "ssim", "perplexity")
MODEL = ("encoder", "decoder", "codebook")  # what is exported
TRAINED = ("encoder/", "decoder/", "discriminator/")  # by gradients


def make(config, mesh: Mesh | None = None) -> Objective:
    """The tokenizer's objective (model, loss.commitment, loss.decay, loss.dead).

      loss = mean |x - decoded| + commitment mean (1 - cos(z, code of z))

    in normalised pixels, and with loss.adversarial > 0 the terms of `adversarial` from
    step loss.adversarial_from on. `usage` holds the codes' moving averages: `share`
    (k,), how often each is the nearest, and `sum` (k, d), of the features that it then
    stands for; a code is the latter's direction. See `advanced`.
    """
    del mesh
    if config.model_init:
        raise PacxError(
            "config.model_init: a tokenizer does not start from another one's weights; "
            "leave it empty"
        )
    _check(config)
    architecture = _architecture(config)
    model = vq.module(
        architecture, jnp.dtype(config.dtype), config.get("remat", "none")
    )
    size, count = config.data.image_size, model.codes
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    judge = None
    if config.loss.adversarial > 0:
        judge = Discriminator(model.widths[:3], jnp.dtype(config.dtype))

    def init(key):
        image = jnp.zeros((1, size, size, model.channels))
        params = model.init(key, image)["params"]
        if judge:
            params = {**params, "discriminator": judge.init(key, image)["params"]}
        nothing = {
            "share": jnp.zeros(count),
            "sum": jnp.zeros((count, model.code_width)),
        }
        return {**params, "usage": nothing}

    def reconstruct(params, images):
        weights = {name: params[name] for name in MODEL}
        decoded, z, codes = model.apply({"params": weights}, images)
        chosen = jnp.take(params["codebook"]["codes"], codes, axis=0, mode="clip")
        each = {
            "l1": jnp.abs(losses.wide(decoded) - images).mean((1, 2, 3)),
            "commitment": (1 - (z * chosen).sum(-1)).mean((1, 2)),
        }
        return decoded, z, codes, each

    def total(each):
        return each["l1"] + config.loss.commitment * each["commitment"]

    def loss(params, batch, key, *, train, step=0):
        del train  # no dropout
        images = normalize(batch["image"], mean, std)
        decoded, z, codes, each = reconstruct(params, images)
        rows = sharding.row_numbers(batch)
        z = jax.lax.stop_gradient(z).reshape(len(z), -1, z.shape[-1])
        found = statistics(z, codes.reshape(len(z), -1), count)
        found["drawn"] = drawn(key, z, rows, config.global_batch_size, count)
        each = {name: values.mean() for name, values in each.items()}
        value = total(each)
        if judge:
            weights = params["discriminator"]
            fooling, judging = adversarial(judge, weights, decoded, images)
            on = jnp.where(step >= config.loss.adversarial_from, 1.0, 0.0)
            value += on * (config.loss.adversarial * fooling + judging)
            each |= {"fooling": fooling, "judging": judging}
        return value, each | found

    def outputs(params, batch, key):
        del key
        images = normalize(batch["image"], mean, std)
        decoded, _, codes, each = reconstruct(params, images)
        shown = [pixels(x, mean, std) for x in (decoded, images)]
        found = {"loss": total(each), **each, "codes": codes}
        near = image_scores.scores(*shown)
        return found | {name: near[name] for name in ("psnr", "ssim")}

    def summarize(outputs):
        codes = outputs["codes"]
        found = {k: float(v.mean()) for k, v in outputs.items() if k != "codes"}
        share = np.bincount(codes.ravel(), minlength=count) / codes.size
        share = share[share > 0]
        found["perplexity"] = float(np.exp(-(share * np.log(share)).sum()))
        return found | {"codes_used": len(share) / count}

    def images(params, batch, key):
        del key
        x = normalize(batch["image"][:4], mean, std)
        decoded = reconstruct(params, x)[0]
        row = [jnp.round(255 * pixels(each, mean, std)) for each in (x, decoded)]
        row = jnp.concatenate(row, axis=2).astype(jnp.uint8)
        return {"reconstruction": jnp.broadcast_to(row, (*row.shape[:3], 3))}

    return Objective(
        init=init,
        trainable=lambda path: path.startswith(TRAINED),
        loss=loss,
        by_step=judge is not None,
        outputs=outputs,
        summarize=summarize,
        advance=lambda frozen, found: advanced(frozen, found, config.loss),
        weight=lambda batch: len(batch["image"]),
        images=images,
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports encoder, codebook and decoder, which are one model."""
    del labels
    about = model_folder.image_preprocessing(config.data.mean, config.data.std)
    del about["embedding"]
    weights = {name: params[name] for name in MODEL}
    return ModelFolder("vq", _architecture(config), about, weights)


def _architecture(config) -> dict:
    data = config.data
    return vq.architecture(config.model, data.get("channels", 3), data.image_size)


def _check(config) -> None:
    loss, size, least = config.loss, config.data.image_size, image_scores.WINDOW
    if size < least:
        raise PacxError(f"config.data.image_size is {size}: give at least {least}")
    limits = dict.fromkeys(("commitment", "adversarial"), (0, float("inf")))
    limits |= dict.fromkeys(("decay", "dead"), (0, 1))
    for name, (low, high) in limits.items():
        if not low <= loss[name] < high:
            raise PacxError(
                f"config.loss.{name} is {loss[name]}: give at least {low} and below "
                f"{high}"
            )


def pixels(images: Array, mean, std) -> Array:
    """Normalised images (b, h, w, c) as pixels within [0, 1], float32."""
    return jnp.clip(losses.wide(images) * jnp.asarray(std) + jnp.asarray(mean), 0, 1)


def adversarial(judge, weights: Params, decoded: Array, images: Array):
    """What the decoder and what the discriminator adds to the loss, scalars.

    The discriminator's hinge loss moves it alone, and the decoder's term, -mean logit,
    does not move the discriminator, so that one optimizer takes both.

    Args:
      judge: a `Discriminator`, with these weights.
      decoded, images: (b, h, w, c), normalised.
    """

    def logits(weights, x):
        return judge.apply({"params": weights}, x)

    fixed, made = jax.lax.stop_gradient((weights, decoded))
    fooling = -logits(fixed, decoded).mean()
    real, fake = logits(weights, images), logits(weights, made)
    return fooling, (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def statistics(z: Array, codes: Array, count: int) -> dict[str, Array]:
    """How often each code is chosen, and for what, as means over a batch's tokens.

    Means, so that those of a batch's parts add up, weighted, to the whole batch's.

    Args:
      z: (b, n, d) features.
      codes: (b, n), of `count` ones.

    Returns:
      share (k,), which sums to 1, and sum (k, d).
    """
    # A product with ones and zeros: a scatter's order differs from run to run on GPUs.
    chosen = jax.nn.one_hot(codes, count, dtype=z.dtype)
    tokens = codes.size
    total = jnp.einsum("bnk,bnd->kd", chosen, z, precision="highest")
    return {"share": chosen.sum((0, 1)) / tokens, "sum": total / tokens}


def drawn(key: jax.Array, z: Array, rows: Array, size: int, count: int) -> Array:
    """A feature of the batch for each code, (k, d), drawn with replacement.

    Args:
      z: (b, n, d), of a part of the batch or of all.
      rows: (b,) numbers of these rows in the batch of `size` rows; of a row that is not
        here, the feature is 0.
    """
    n = z.shape[1]
    row, token = jnp.divmod(jax.random.randint(key, (count,), 0, size * n), n)
    here = rows == row[:, None]
    found = z[jnp.argmax(here, axis=1), token]
    return jnp.where(here.any(1)[:, None], found, 0)


def advanced(frozen: Params, found: Metrics, loss) -> tuple[Params, Metrics]:
    """The codes after a batch, and what is logged.

      share = decay share + (1 - decay) that of the batch, and sum likewise
      code = sum / |sum|

    A code whose share is below `loss.dead` / k, of k codes, is dead: it becomes a
    feature that was drawn from the batch, with the share 1 / k. At first all are dead,
    so the first batch makes the codes.

    Args:
      frozen: codebook and usage.
      found: what the loss found, with share, sum and drawn.

    Returns:
      frozen; found without arrays, but with perplexity (exp of the entropy of the
      batch's codes) and the shares of codes used in the batch and revived after it.
    """
    found, usage = dict(found), frozen["usage"]
    batch = {name: found.pop(name) for name in ("share", "sum")}
    fresh = losses.l2_normalize(found.pop("drawn"))
    moved = {
        name: loss.decay * usage[name] + (1 - loss.decay) * batch[name]
        for name in batch
    }
    count = len(fresh)
    dead = moved["share"] < loss.dead / count
    usage = {
        "share": jnp.where(dead, 1 / count, moved["share"]),
        "sum": jnp.where(dead[:, None], fresh / count, moved["sum"]),
    }
    share = batch["share"]
    entropy = -jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0).sum()
    found |= {
        "perplexity": jnp.exp(entropy),
        "codes_used": (share > 0).mean(),
        "codes_revived": dead.mean(),
    }
    codes = jnp.where(
        usage["share"][:, None] > 0,
        losses.l2_normalize(usage["sum"], 1e-12),
        frozen["codebook"]["codes"],  # never used, and loss.dead is 0
    )
    return {"codebook": {"codes": codes}, "usage": usage}, found
