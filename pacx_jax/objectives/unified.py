"""CheXmix: next-token prediction over the codes of an X-ray and the words of a report.

  loss = sum_m w_m S_m / sum_m w_m N_m

over the modalities m, image and text (arXiv 2604.22989). S_m is the sum of the
cross-entropies of the next tokens that are of modality m, and N_m their number. Stage
`causal` reads the sequence as it is; stage `masked` replaces a random subset of the
codes and words that are *read* by [MASK], still causally, and `loss.on` says whether
all tokens are to be predicted or only the replaced ones. The image tokenizer is frozen
and encodes in the step. docs/chexmix.md.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import sharding
from pacx_jax.encoders import image_statistics, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import normalize
from pacx_jax.modalities import report
from pacx_jax.models import text_loss, unified, unified_encoder, vit
from pacx_jax.types import Array, Objective, Params

SHOWN = ("loss", "image", "text")
VQ, TRANSFORMER = "vq", "transformer"  # parts of the parameters
STAGES = ("causal", "masked")
ORDERS = ("image_first", "text_first", "both")
ON = ("all", "masked")
_KINDS = ("image", "text")


def make(config, mesh: Mesh | None = None) -> Objective:
    """The objective of `config.stage` on images with reports."""
    del mesh
    _check(config)
    folder = image_tokenizer(config)
    reader = report.reader(config.data)
    model = from_config(config, folder, reader.preprocessing)
    transformer, words = model.transformer, model.words
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    weights = jnp.array([config.loss.image_weight, config.loss.text_weight])
    # The causal stage is the masked one of shares 0: the same program, the same bits.
    masks = config.loss.mask_image, config.loss.mask_text
    shares = masks if config.stage == "masked" else ((0.0, 0.0),) * 2
    start = config.model_init

    def init(key):
        tokens = jnp.zeros((1, 2), jnp.int32)
        frozen = jax.tree.map(lambda x: jnp.zeros(x.shape), folder.params)
        return {VQ: frozen, TRANSFORMER: transformer.init(key, tokens)["params"]}

    def hidden(params, batch, key, train):
        """What the output layer takes, and the labels and kinds of the next tokens."""
        rows = sharding.row_numbers(batch)
        images = normalize(batch["image"], mean, std)
        codes = model.apply({"params": {VQ: params[VQ]}}, images, method="codes")
        codes = jax.lax.stop_gradient(codes)
        text = jnp.where(
            batch["report_present"][:, None] > 0, batch["report_tokens"], words.pad_id
        )
        first = text_first(config.order, key, rows, train)
        tokens = words.sequences(codes, text, first)
        masked = replaced(words, shares, tokens, key, rows)
        inputs = jnp.where(masked, words.mask, tokens)
        x = transformer.apply({"params": params[TRANSFORMER]}, inputs, method="hidden")
        labels = tokens[:, 1:]
        kinds = words.kinds(labels)
        valid = jnp.stack([kinds == unified.IMAGE, kinds == unified.TEXT], axis=-1)
        if config.loss.on == "masked":
            valid &= masked[:, 1:, None]
        return x[:, :-1], labels, valid

    def kernel(params):
        return unified.output_kernel(params[TRANSFORMER], transformer.tied)

    def loss(params, batch, key, *, train):
        x, labels, valid = hidden(params, batch, key, train)
        total, count = text_loss.chunked_cross_entropy(
            x, kernel(params), labels, valid, dtype=transformer.dtype
        )
        each = total / jnp.maximum(count, 1)
        value = (weights * total).sum() / jnp.maximum((weights * count).sum(), 1)
        metrics = dict(zip(_KINDS, each, strict=True))
        return value, metrics | {"reports": batch["report_present"].mean()}

    def outputs(params, batch, key):
        x, labels, valid = hidden(params, batch, key, False)
        total = text_loss.by_row(x, kernel(params), labels, valid)
        return {"total": total, "count": valid.sum(1)}

    def summarize(outputs):
        total, count = outputs["total"].sum(0), outputs["count"].sum(0)
        each = total / np.maximum(count, 1)
        by = np.asarray(weights)
        found = {"loss": float((by * total).sum() / max((by * count).sum(), 1))}
        for name, value, n in zip(_KINDS, each, count, strict=True):
            if n:
                found[name] = float(value)
                found[f"{name}_perplexity"] = float(np.exp(value))
        return found

    return Objective(
        init=init,
        trainable=lambda path: not path.startswith(f"{VQ}/"),
        loss=loss,
        outputs=outputs,
        summarize=summarize,
        pretrained={VQ: start or config.vq_init}
        | ({TRANSFORMER: start} if start else {}),
        readers=(reader,),
    )


def text_first(order: str, key: jax.Array, rows: Array, train: bool) -> Array:
    """Whether each row's text stands before its image, (b,) bool.

    "both" draws it by the key and the row's number, and in evaluation puts the image
    first.
    """
    if order == "both" and train:
        return by_row(key, 1, rows, lambda k: jax.random.bernoulli(k))
    return jnp.full(rows.shape, order == "text_first")


def replaced(words: unified.Words, shares, tokens: Array, key, rows: Array) -> Array:
    """Which tokens (b, n) are read as [MASK], bool.

    Each row draws a share for its image and one for its text, evenly, and each code and
    word is replaced with that probability. [IMG], [/IMG], [CLS], [SEP] and padding
    stay.

    Args:
      shares: (low, high) of the image's share and of the text's.
    """
    bounds = jnp.array(shares, jnp.float32)
    kinds = words.kinds(tokens)

    def drawn(key):
        share, noise = jax.random.split(key)
        share = jax.random.uniform(share, (2,), jnp.float32)
        share = bounds[:, 0] + share * (bounds[:, 1] - bounds[:, 0])
        return share, jax.random.uniform(noise, tokens.shape[1:], jnp.float32)

    share, noise = by_row(key, 2, rows, drawn)
    share = jnp.where(kinds == unified.IMAGE, share[:, :1], share[:, 1:])
    return words.content(tokens) & (noise < share)


def by_row(key: jax.Array, stream: int, rows: Array, draw):
    """draw(key) of each row: by the key, the stream and the row's number alone."""
    key = jax.random.fold_in(key, stream)
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)


def from_config(config, folder: ModelFolder, texts: dict) -> unified_encoder.Encoder:
    """The model that `config.model` describes.

    Args:
      folder: of the image tokenizer.
      texts: how reports are read, see `modalities.report.settings`.
    """
    if config.model.variant not in vit.VARIANTS:
        raise PacxError(
            f"config.model.variant is {config.model.variant!r}; choose one of "
            f"{', '.join(vit.VARIANTS)}"
        )
    width, depth, num_heads = vit.VARIANTS[config.model.variant]
    module = folder.module()  # float32 whatever the run's: codes as in use
    words = unified.Words(
        text_size=texts["vocab_size"],
        codes=folder.architecture["codes"],
        **{k: texts[k] for k in ("pad_id", "start_id", "end_id")},
    )
    codes = (config.data.image_size // module.factor) ** 2
    transformer = unified.Transformer(
        vocab_size=words.size,
        length=codes + 2 + texts["length"],
        width=width,
        depth=depth,
        num_heads=num_heads,
        positions=config.model.positions,
        tied=config.model.tied,
        ln_eps=config.model.ln_eps,
        dtype=jnp.dtype(config.dtype),
        **vit.ways(config),
    )
    layers = tuple(config.model.layers) or unified.middle_third(depth)
    if len(layers) != 2 or not 0 <= layers[0] < layers[1] <= depth:
        raise PacxError(
            f"config.model.layers {layers}: give (first, last + 1) of {depth} blocks, "
            "or () for the middle third"
        )
    return unified_encoder.Encoder(module, transformer, words, layers)


def image_tokenizer(config) -> ModelFolder:
    """The folder of the frozen image tokenizer, whose images the data must have.

    A run that starts from another model takes that one's; `config.vq_init` may then
    stay empty.

    Raises:
      PacxError: none is named, or its images or those of `config.model_init` differ.
    """
    at, start = config.vq_init, config.model_init
    if not at and not start:
        raise PacxError(
            "config.vq_init is empty: give the image tokenizer's workdir or folder "
            "(configs/vq_f16.py), or a model to start from in config.model_init"
        )
    folder = model_folder.load(at, "vq") if at else None
    if start:
        own = part_of(model_folder.load(start, "unified"), start, config)
        if folder and not _alike(folder, own):
            raise PacxError(
                f"config.vq_init {at}: not the image tokenizer that {start} was "
                "trained with; leave it empty to take that one"
            )
        folder, at = own, start
    image_statistics.check_data(folder, at, config.data)
    return folder


def part_of(model: ModelFolder, path: str | os.PathLike, config=None) -> ModelFolder:
    """The image tokenizer in the folder of a unified model.

    Args:
      config: of a run that starts from it; its tokenizer of reports must be the same.
    """
    if config is not None:
        found = report.settings(config.data)
        there = model.preprocessing["report"]
        for name in ("sha256", "length", "sections"):
            if found[name] != there[name]:
                fields = {"sha256": "tokenizer", "length": "report_length"}
                field = fields.get(name, "report_sections")
                raise PacxError(
                    f"config.data.{field}: {path} was trained with {there[name]}, here "
                    f"is {found[name]}: give the same"
                )
    about = {k: v for k, v in model.preprocessing.items() if k != "report"}
    return ModelFolder(VQ, model.architecture["vq"], about, model.params[VQ])


def _alike(a: ModelFolder, b: ModelFolder) -> bool:
    same = a.architecture == b.architecture
    return same and all(
        np.array_equal(x, y)
        for x, y in zip(
            jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True
        )
    )


def export(config, params: Params, labels: list[str] | None = None) -> ModelFolder:
    """Exports image tokenizer and transformer, which together take an X-ray alone."""
    del labels
    folder, about = image_tokenizer(config), report.settings(config.data)
    model = from_config(config, folder, about)
    architecture = unified_encoder.architecture(
        folder.architecture, model.words, model.transformer, model.layers
    )
    kept = ("sha256", "length", "sections")
    preprocessing = model_folder.image_preprocessing(config.data.mean, config.data.std)
    first, last = model.layers
    preprocessing["embedding"] = (
        f"mean over the image's positions of the outputs of blocks {first} to "
        f"{last - 1}, of 0 to {model.transformer.depth - 1}"
    )
    preprocessing["report"] = {k: about[k] for k in kept}
    params = {k: params[k] for k in (VQ, TRANSFORMER)}
    return ModelFolder("unified", architecture, preprocessing, params)


def _check(config) -> None:
    for field, value, choices in (
        ("stage", config.stage, STAGES),
        ("order", config.order, ORDERS),
        ("loss.on", config.loss.on, ON),
    ):
        if value not in choices:
            raise PacxError(f"config.{field} {value!r}: choose {', '.join(choices)}")
    for name in _KINDS:
        weight = config.loss[f"{name}_weight"]
        if not weight >= 0:
            raise PacxError(f"config.loss.{name}_weight is {weight}: give at least 0")
        low, high = config.loss[f"mask_{name}"]
        if not 0 <= low <= high <= 1:
            raise PacxError(
                f"config.loss.mask_{name} ({low}, {high}): give (low, high) within 0 "
                "and 1"
            )
    if config.loss.on == "masked" and config.stage != "masked":
        raise PacxError(
            "config.loss.on=masked: no token is masked in config.stage=causal; give all"
        )
