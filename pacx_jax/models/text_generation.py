"""Texts written by a report decoder, token by token, with a cache.

Shape letters: b batch, t text tokens, m image tokens, d width, h heads, c channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pacx_jax.errors import PacxError
from pacx_jax.models import text
from pacx_jax.types import Array, Params

DRAWING = ("k", "temperature", "top_p")  # how tokens are drawn, see `chosen`


def first_cache(model: text.TextDecoder, params: Params, memory: Array, length: int):
    """A cache of no tokens: the memory's keys and values, and room for the text's.

    Returns:
      One {"past": (k, v) (b, h, length, c), "kept": (k, v) (b, h, m, c)} a block.
    """
    heads, dtype = model.num_heads, model.dtype
    shape = len(memory), heads, length, model.width // heads
    cache = []
    for i in range(model.depth):
        kernel = params[text.block_name(i)]["cross_attn"]["kv"]["kernel"]
        kv = memory.astype(dtype) @ kernel.astype(dtype)
        past = (jnp.zeros(shape, dtype),) * 2
        kept = text.keys_and_values(kv, heads)
        cache.append({"past": past, "kept": kept})
    return cache


@functools.partial(
    jax.jit,
    static_argnames=("model", "start", "end", "pad", "max_length", *DRAWING),
)
def generate(
    model: text.TextDecoder,
    params: Params,
    memory: Array,
    *,
    start: int,
    end: int,
    pad: int = 0,
    max_length: int = 0,
    k: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    rows: Array | None = None,
) -> Array:
    """Writes one text per row of memory (b, m, e).

    Greedy for k = 0, else drawn, see `chosen`; a row's draws depend on the key and the
    row's number alone. The tokens `pad` and `start` are never written. Ends early once
    all texts have ended.

    Args:
      start, end, pad: token ids. A text begins with `start`; after `end` comes padding.
      max_length: tokens of the result; 0: the model's.
      k, temperature, top_p: see `chosen`.
      key: needed if k > 0.
      rows: (b,) numbers of the rows; None: 0 to b - 1.

    Returns:
      (b, max_length) int32.

    Raises:
      PacxError: a length or a k that the model does not have.
    """
    length, b = max_length or model.max_length, len(memory)
    if not 1 <= length <= model.max_length:
        raise PacxError(f"max_length {length}: give 1 to {model.max_length}")
    check_drawing(model.vocab_size, k, temperature, top_p, key)
    rows = jnp.arange(b) if rows is None else rows
    cache = first_cache(model, params, memory, length)
    tokens = jnp.full((b, length), pad, jnp.int32).at[:, 0].set(start)
    never = jnp.array([pad, start])

    def goes_on(state):
        at, _, done, _ = state
        return (at + 1 < length) & ~done.all()

    def step(state):
        at, tokens, done, cache = state
        current = jax.lax.dynamic_index_in_dim(tokens, at, 1, keepdims=False)
        logits, cache = model.apply(
            {"params": params}, current, at, cache, method="next_logits"
        )
        logits = logits.astype(jnp.float32).at[:, never].set(-jnp.inf)
        found = chosen(logits, k, key, rows, at, temperature, top_p)
        found = jnp.where(done, pad, found).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(tokens, found[:, None], (0, at + 1))
        return at + 1, tokens, done | (found == end), cache

    state = jnp.int32(0), tokens, jnp.zeros((b,), bool), cache
    return jax.lax.while_loop(goes_on, step, state)[1]


def check_drawing(size: int, k: int, temperature: float, top_p: float, key) -> None:
    """PacxError for what `chosen` cannot draw of `size` tokens."""
    if not 0 <= k <= size:
        raise PacxError(f"k {k}: give 0 (greedy) to {size}")
    if not temperature > 0:
        raise PacxError(f"temperature {temperature}: give more than 0, or k 0 (greedy)")
    if not 0 < top_p <= 1:
        raise PacxError(f"top_p {top_p}: give more than 0 and at most 1")
    if k and key is None:
        raise ValueError("drawing from the k likeliest needs a key")


def chosen(
    logits: Array,
    k: int,
    key,
    rows: Array,
    at: Array,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Array:
    """The next tokens, (b,), of logits (b, vocab).

    Args:
      k: 0, greedy; else the number of likeliest tokens to draw from. 1 is greedy too.
      key, rows, at: the key, the rows' numbers (b,) and the place, by which is drawn.
      temperature: divides the logits.
      top_p: only the likeliest tokens that together have this probability are drawn
        (Holtzman 2020); the likeliest always is.
    """
    if k == 0:
        return logits.argmax(-1)
    values, ids = jax.lax.top_k(logits, k)
    values = values / temperature
    if top_p < 1:
        probs = jax.nn.softmax(values)
        before = jnp.cumsum(probs, axis=-1) - probs
        values = jnp.where(before < top_p, values, -jnp.inf)

    def draw(row, values):
        own = jax.random.fold_in(jax.random.fold_in(key, row), at)
        return jax.random.categorical(own, values)

    drawn = jax.vmap(draw)(rows, values)
    return jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]
