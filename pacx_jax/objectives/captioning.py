"""The report as supervision of MVMAE: a text decoder reads the visible tokens.

  L_caption = cross-entropy per token of the studies that have a report

teacher forced. The decoder reads one view at a time: each step one that is drawn, or
all in turn (`config.caption.per_step`).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import losses, sharding
from pacx_jax.errors import PacxError
from pacx_jax.input import tokenizer
from pacx_jax.modalities import report
from pacx_jax.models import caption, text, text_generation, text_loss, vit
from pacx_jax.types import Array, Batch, Metrics, Params

PART = "caption"  # of the parameters
PER_STEP = ("one", "all")


def make(config) -> Captioning | None:
    """The captioning that `config.caption` asks for; None if its weight is 0."""
    c = config.caption
    if not c.weight >= 0:
        raise PacxError(f"config.caption.weight is {c.weight}: give at least 0")
    if not c.weight:
        return None
    if c.per_step not in PER_STEP:
        raise PacxError(
            f"config.caption.per_step {c.per_step!r}: choose {' or '.join(PER_STEP)}"
        )
    reader = report.reader(config.data)
    about = reader.preprocessing
    words = report.opened(about["tokenizer"], about["sha256"])
    side = config.data.image_size // config.model.patch_size
    decoder = text.from_config(config, words.vocab_size)
    memory = caption.Memory(
        decoder.width, (side, side), config.model.get("views", 0), decoder.dtype
    )
    return Captioning(config, caption.Captioner(memory, decoder), words, reader)


@dataclasses.dataclass(frozen=True)
class Captioning:
    """The text decoder of an MVMAE, its loss and its texts.

    Attributes:
      config: the run's.
      module: the text decoder and its memory.
      words: the tokenizer.
      reader: makes `report_tokens` and `report_present` of an example.
    """

    config: object
    module: caption.Captioner
    words: tokenizer.Tokenizer
    reader: report.Reader

    @property
    def readers(self) -> tuple[report.Reader, ...]:
        """What reads the reports of an example."""
        return (self.reader,)

    def init(self, key: jax.Array, ids_keep: Array) -> Params:
        """{"caption": parameters}."""
        width = vit.VARIANTS[self.config.model.variant][0]
        tokens = jnp.zeros((1, 1 + ids_keep.shape[1], width))
        report = jnp.zeros((1, self.config.data.report_length), jnp.int32)
        view = jnp.zeros(1, jnp.int32)
        args = tokens, ids_keep, view, report
        return {PART: self.module.init(key, *args, method="start")["params"]}

    def loss(
        self,
        params: Params,
        batch: Batch,
        tokens: Array,
        ids_keep: Array,
        key: jax.Array,
        train: bool,
    ) -> tuple[Array, Metrics]:
        """Cross-entropy per token, () float32, and metrics.

        Args:
          tokens: (b v, 1 + k, d) of the encoder.
          ids_keep: (b v, k), their patches.
        """
        key = jax.random.fold_in(key, 1)  # masks are drawn from the key itself
        if self.config.caption.per_step == "one":
            slots = [drawn_slot(key, sharding.row_numbers(batch), batch["view_mask"])]
        else:
            slots = range(batch["view"].shape[1])
        found = [
            self._of_slot(params, batch, tokens, ids_keep, slot, key, train)
            for slot in slots
        ]
        total, count = (sum(x) for x in zip(*found, strict=True))
        value = total / jnp.maximum(count, 1)
        return value, {"caption": value, "reports": batch["report_present"].mean()}

    def _of_slot(self, params, batch, tokens, ids_keep, slot, key, train):
        """Sum of the cross-entropies and number of tokens, of one view a study."""
        each, _, present = self._hidden(
            params, batch, tokens, ids_keep, slot, key, train
        )
        c, decoder = self.config.caption, self.module.text
        return text_loss.chunked_caption_loss(
            each,
            params[PART]["text"]["head"]["kernel"],
            batch["report_tokens"],
            present,
            self.words.pad_id,
            label_smoothing=c.label_smoothing,
            dtype=decoder.dtype,
        )

    def _hidden(self, params, batch, tokens, ids_keep, slot, key, train):
        tokens, ids_keep, view, here = of_slot(batch, tokens, ids_keep, slot)
        rows = sharding.row_numbers(batch)
        hidden = self.module.apply(
            {"params": params[PART]},
            tokens,
            ids_keep,
            view,
            batch["report_tokens"],
            train,
            key,
            rows,
            method="hidden",
        )
        return hidden, view, batch["report_present"] * here

    def outputs(self, params: Params, batch: Batch, tokens: Array, ids_keep: Array):
        """Each study's cross-entropy from its first view, summed, and its tokens."""
        hidden, _, present = self._hidden(
            params, batch, tokens, ids_keep, 0, None, False
        )
        kernel = params[PART]["text"]["head"]["kernel"]
        labels, valid = text_loss.targets(
            batch["report_tokens"], present, self.words.pad_id
        )

        each = text_loss.by_row(hidden[:, :-1], kernel, labels, valid[..., None])
        return {"caption_sum": each[:, 0], "caption_tokens": valid.sum(1)}

    def summarize(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """Cross-entropy per token of the reports, and its exponential."""
        count = outputs["caption_tokens"].sum()
        if not count:
            return {}
        value = float(outputs["caption_sum"].sum() / count)
        return {"caption": value, "perplexity": float(np.exp(value))}

    def write(self, params: Params, tokens, ids_keep, view, **how) -> list[str]:
        """Texts of rows of encoder tokens; `how` as of `text_generation.generate`."""
        memory = self.module.apply(
            {"params": params[PART]}, tokens, ids_keep, view, method="remember"
        )
        ids = text_generation.generate(
            self.module.text,
            params[PART]["text"],
            memory,
            start=self.words.start_id,
            end=self.words.end_id,
            pad=self.words.pad_id,
            **how,
        )
        return [self.words.decode(row) for row in np.asarray(ids)]


def drawn_slot(key: jax.Array, rows: Array, view_mask: Array) -> Array:
    """One of the views that each study has, (b,): by the key and the row's number."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    v = view_mask.shape[1]
    noise = jax.vmap(lambda k: jax.random.uniform(k, (v,), jnp.float32))(keys)
    return jnp.where(view_mask > 0, noise, -1).argmax(1)


def of_slot(batch: Batch, tokens: Array, ids_keep: Array, slot):
    """Tokens, patches, view and mask of one view a study; `slot` is () or (b,)."""
    b, v = batch["view"].shape
    slot = jnp.broadcast_to(slot, (b,))
    chosen = jax.nn.one_hot(slot, v, dtype=losses.wide(tokens).dtype)

    def take(x):
        x = x.reshape(b, v, *x.shape[1:])
        index = slot.reshape(b, 1, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1, mode="clip")[:, 0]

    return (
        take(tokens),
        take(ids_keep),
        take(batch["view"].reshape(-1)),
        (batch["view_mask"] * chosen).sum(1),
    )
