"""What the shapes of a state dict's arrays tell, one size each."""

from __future__ import annotations

import re

from pacx_jax.convert.options import Options
from pacx_jax.errors import PacxError

# Heads by width, of the published ViT-Ti, S, B, L and H; of a kind's decoder.
NUM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_NUM_HEADS = {
    "mae": {512: 16},
    "vit_hf": {512: 16},
    "mvmae": {192: 3, 768: 12},
}


def shape_of(state: dict, key: str, axes: str) -> tuple[int, ...]:
    """The shape of a key that must be there, with axes of these names."""
    if key not in state:
        raise PacxError(f"missing {key}")
    shape, names = state[key].shape, axes.split()
    if len(shape) != len(names) or 0 in shape:
        raise PacxError(f"{key} is {shape}, not ({', '.join(names)})")
    return shape


def heads_of(name: str, width: int, given: int | None, known: dict[int, int]) -> int:
    """Heads of attention: as given, or as published for the width."""
    if not (given or width in known):
        raise PacxError(f"a width of {width} tells no number of heads: give --{name}")
    count = given or known[width]
    if width % count:
        raise PacxError(f"its width {width} is not divisible by {name} {count}")
    return count


def epsilons(options: Options, about) -> dict:
    """`ln_eps`, and `final_ln_eps` where it is another."""
    eps = options.ln_eps or about.ln_eps
    final = options.final_ln_eps or about.final_ln_eps or eps
    return {"ln_eps": eps} | ({"final_ln_eps": final} if final != eps else {})


def count_of(state: dict, prefix: str) -> int:
    """How many numbers stand at {i} of `prefix` among the keys."""
    before, after = (re.escape(part) for part in prefix.split("{i}"))
    found = {m[1] for m in (re.match(rf"{before}(\d+){after}", k) for k in state) if m}
    if not found:
        raise PacxError(f"missing {prefix.format(i=0)}*")
    return len(found)
