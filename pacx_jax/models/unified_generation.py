"""What a unified model writes: words and codes in the open places of a sequence.

Shape letters: b batch, n tokens, d width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pacx_jax.models import text_loss, unified
from pacx_jax.models.text_generation import DRAWING, check_drawing, chosen
from pacx_jax.models.unified import IMAGE, PAD, TEXT
from pacx_jax.types import Array, Params

_STATIC = ("model", "words", *DRAWING)


@functools.partial(jax.jit, static_argnames=(*_STATIC, "prefix"))
def fill(
    model: unified.Transformer,
    words: unified.Words,
    params: Params,
    tokens: Array,
    wanted: Array,
    *,
    prefix: int = 1,
    k: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    rows: Array | None = None,
) -> Array:
    """Fills places one after the other, with a cache of keys and values.

    What is written is read for the places behind it. A text ends with [SEP], and its
    later places are padding. Ends early once nothing is left to write.

    Args:
      tokens: (b, n); those of wanted places are ignored.
      wanted: (b, n), PAD where the token is given, IMAGE where a code is to be written
        and TEXT where a word is.
      prefix: places at the beginning that are given in every row; they are read at
        once.
      k, temperature, top_p: see `text_generation.chosen`; 0 is greedy.
      key: needed if k > 0.
      rows: (b,) numbers of the rows, by which is drawn; None: 0 to b - 1.

    Returns:
      (b, n) int32.

    Raises:
      PacxError: a way to draw that there is not, or a sequence that is too long.
    """
    check_drawing(words.size, k, temperature, top_p, key)
    b, n = tokens.shape
    rows = jnp.arange(b) if rows is None else rows
    tokens = jnp.where(wanted == PAD, tokens, words.pad_id).astype(jnp.int32)
    of, places = {"params": params}, jnp.arange(n)
    logits, cache = model.apply(of, tokens[:, :prefix], n, method="start")

    def goes_on(state):
        at, _, _, done, _ = state
        open_ = jnp.where(done[:, None], wanted == IMAGE, wanted != PAD)
        return (open_ & (places > at)).any()

    def step(state):
        at, logits, tokens, done, cache = state
        at = at + 1
        want, given = wanted[:, at], tokens[:, at]
        seen = jnp.where(allowed(words, want), logits.astype(jnp.float32), -jnp.inf)
        found = chosen(seen, k, key, rows, at, temperature, top_p)
        found = jnp.where(done & (want == TEXT), words.pad_id, found)
        found = jnp.where(want == PAD, given, found).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(tokens, found[:, None], (0, at))
        done |= (want == TEXT) & (found == words.end_id)
        logits, cache = model.apply(of, found, at, cache, method="next_logits")
        return at, logits, tokens, done, cache

    state = jnp.int32(prefix - 1), logits, tokens, jnp.zeros(b, bool), cache
    return jax.lax.while_loop(goes_on, step, state)[2]


@functools.partial(jax.jit, static_argnames=_STATIC)
def fill_at_once(
    model: unified.Transformer,
    words: unified.Words,
    params: Params,
    tokens: Array,
    wanted: Array,
    *,
    k: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    rows: Array | None = None,
) -> Array:
    """`fill` in one pass: wanted places are read as [MASK], as stage `masked` trains.

    No place sees what is written in another.
    """
    check_drawing(words.size, k, temperature, top_p, key)
    rows = jnp.arange(len(tokens)) if rows is None else rows
    tokens = jnp.where(wanted == PAD, tokens, words.mask)
    hidden = model.apply({"params": params}, tokens, method="hidden")
    kernel = unified.output_kernel(params, model.tied)

    def of_place(args):
        x, want, at = args
        logits = (x @ kernel.astype(x.dtype)).astype(jnp.float32)
        seen = jnp.where(allowed(words, want), logits, -jnp.inf)
        return chosen(seen, k, key, rows, at, temperature, top_p)

    args = hidden[:, :-1].swapaxes(0, 1), wanted[:, 1:].T
    found = jax.lax.map(of_place, (*args, jnp.arange(1, tokens.shape[1])))
    found = jnp.pad(found.T, ((0, 0), (1, 0)))
    return jnp.where(wanted == PAD, tokens, found).astype(jnp.int32)


def allowed(words: unified.Words, want: Array) -> Array:
    """Which tokens (b, vocab) may be written where `want` (b,) says; bool."""
    ids = jnp.arange(words.size)
    word = (ids < words.text_size) & (ids != words.pad_id) & (ids != words.start_id)
    return jnp.where((want == TEXT)[:, None], word, ids >= words.first_code)


@functools.partial(jax.jit, static_argnames=("model",))
def log_likelihood(
    model: unified.Transformer, params: Params, tokens: Array, counted: Array
) -> Array:
    """Sum of log p of the tokens (b, n) that are `counted` (b, n), given those before.

    Returns:
      (b,) float32. The first token is never counted.
    """
    x = model.apply({"params": params}, tokens, method="hidden")
    kernel = unified.output_kernel(params, model.tied)
    found = text_loss.by_row(x[:, :-1], kernel, tokens[:, 1:], counted[:, 1:, None])
    return -found[:, 0]
