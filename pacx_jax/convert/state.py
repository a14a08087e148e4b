"""State dicts <-> our parameters, by a table that is read in both directions.

`load` and `dump` are strict: what is missing, unexpected or of another shape is an
error that lists it. Our names are those of the training tree, joined by ".":
encoder.*, decoder.*, heads.*, lora.*, head.*.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from pacx_jax.errors import PacxError


@dataclasses.dataclass(frozen=True)
class Turn:
    """How arrays of one or several keys become one parameter, and back."""

    load: Callable[[Sequence[np.ndarray]], np.ndarray]
    dump: Callable[[np.ndarray], Sequence[np.ndarray]]


def _axes(*axes: int) -> Turn:
    back = tuple(np.argsort(axes))
    return Turn(lambda x: x[0].transpose(axes), lambda y: (y.transpose(back),))


def _patch_load(x):
    # (d, c, p, q) -> (p q c, d): pixels ordered as `vit.patchify` orders them.
    return x[0].transpose(2, 3, 1, 0).reshape(-1, x[0].shape[0])


def patch(channels: int) -> Turn:
    """A convolution that embeds patches of images with so many channels."""

    def dump(y):
        p = math.isqrt(y.shape[0] // channels)
        return (y.reshape(p, p, channels, -1).transpose(3, 2, 0, 1),)

    return Turn(_patch_load, dump)


def _up_load(x):
    # ConvTranspose2d (in, out, 2, 2) -> dense (in, 2 2 out): no flip at stride 2.
    return x[0].transpose(0, 2, 3, 1).reshape(x[0].shape[0], -1)


def _up_dump(y):
    return (y.reshape(y.shape[0], 2, 2, -1).transpose(0, 3, 1, 2),)


SAME = Turn(lambda x: x[0], lambda y: (y,))
LINEAR = _axes(1, 0)  # (out, in) -> (in, out)
CONV1D = _axes(2, 1, 0)  # (out, in / groups, k) -> (k, in / groups, out)
CONV2D = _axes(2, 3, 1, 0)
POSITIONS = _axes(1, 0, 2)  # (n, 1, d) -> (1, n, d)
UP = Turn(_up_load, _up_dump)


def joined(count: int, weight: bool) -> Turn:
    """Layers side by side, such as q, k and v: their outputs are joined to one's."""
    if weight:
        return Turn(lambda x: np.concatenate(x).T, lambda y: np.split(y.T, count))
    return Turn(np.concatenate, lambda y: np.split(y, count))


def _q_and_v_load(x):
    q, v = x
    return np.concatenate([q, np.zeros_like(q), v])


def _q_and_v_dump(y):
    q, k, v = np.split(y, 3)
    if k.any():
        raise PacxError(
            "this model does not fit the kind: its attention's k has a bias, for which "
            "the kind has no key"
        )
    return q, v


Q_AND_V_BIAS = Turn(_q_and_v_load, _q_and_v_dump)  # k has none


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of ours and the keys that hold it.

    With `fixed`, we have no such parameter: the key's value is always this one (sin-cos
    positions); it is compared at loading, to 1e-6, and written at dumping.
    """

    ours: str
    keys: tuple[str, ...]
    turn: Turn = SAME
    fixed: np.ndarray | None = None


def load(
    table: list[Entry], state: dict, shapes: dict[str, tuple], source: str
) -> dict[str, np.ndarray]:
    """Our parameters, flat, from a state dict.

    Args:
      table: the entries.
      state: key -> array.
      shapes: our name -> the shape that the model wants; names that it lacks pass.
      source: where the state dict is from, for messages.

    Raises:
      PacxError: listing keys that are missing, unexpected, or not as they must be.
    """
    wanted = {key for entry in table for key in entry.keys}
    problems = [f"missing {k}" for k in sorted(wanted - set(state))]
    problems += [
        f"unexpected {k} {np.shape(state[k])}" for k in sorted(set(state) - wanted)
    ]
    out = {}
    for entry in table:
        if any(key not in state for key in entry.keys):
            continue
        arrays = [state[key] for key in entry.keys]
        bad = [k for k, x in zip(entry.keys, arrays, strict=True) if not _finite(x)]
        problems += [f"{key} has values that are not finite" for key in bad]
        if entry.fixed is not None:
            problems += _differs(entry, arrays[0])
            continue
        found = ", ".join(
            f"{k} {np.shape(x)}" for k, x in zip(entry.keys, arrays, strict=True)
        )
        try:
            value = entry.turn.load(arrays)
        except (ValueError, IndexError):
            problems.append(f"{found} is of a wrong shape")
            continue
        if np.shape(value) != shapes.get(entry.ours, np.shape(value)):
            wanted = shapes[entry.ours]
            problems.append(f"{found} is of a wrong shape ({entry.ours} is {wanted})")
            continue
        out[entry.ours] = _contiguous(value)
    if problems:
        raise PacxError(f"{source} does not fit: {shorten(problems)}")
    return out


def _contiguous(value: np.ndarray) -> np.ndarray:
    # ascontiguousarray makes vectors of scalars.
    return np.ascontiguousarray(value).reshape(np.shape(value))


def _finite(x: np.ndarray) -> bool:
    return x.dtype.kind == "i" or bool(np.isfinite(x).all())


def _differs(entry: Entry, value: np.ndarray) -> list[str]:
    wanted = entry.fixed
    if value.shape != wanted.shape:
        return [f"{entry.keys[0]} is {value.shape}, not {wanted.shape}"]
    if not is_fixed(value, wanted):
        error = float(np.abs(value - wanted).max())
        told = f"differs by {error:g}"
        if not value.any():
            told = (
                "all are 0, as of a ViTMAE that transformers 5 made anew; published "
                "ones have them. For the encoder alone: model.vit.save_pretrained(DIR)"
            )
        return [f"{entry.keys[0]} is not the fixed sin-cos positions ({told})"]
    return []


def is_fixed(value: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether a file holds `wanted`: to 1e-6, or as half precision can."""
    if value.shape != wanted.shape:
        return False
    error = np.abs(value - wanted).max()
    for half, step in ((np.float16, 2**-11), (ml_dtypes.bfloat16, 2**-8)):
        if error <= step and (value.astype(half).astype(np.float32) == value).all():
            return True
    return bool(error <= 1e-6)


def dump(table: list[Entry], flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of our parameters; the inverse of `load`.

    Raises:
      PacxError: listing parameters that the table or the model lacks.
    """
    wanted = {entry.ours for entry in table if entry.fixed is None}
    problems = [f"missing {k}" for k in sorted(wanted - set(flat))]
    problems += [f"unexpected {k}" for k in sorted(set(flat) - wanted)]
    if problems:
        raise PacxError(f"this model does not fit the kind: {shorten(problems)}")
    state = {}
    for entry in table:
        values = [entry.fixed]
        if entry.fixed is None:
            values = entry.turn.dump(np.asarray(flat[entry.ours]))
        for key, value in zip(entry.keys, values, strict=True):
            state[key] = _contiguous(value)
    return state


def shorten(problems: list[str], limit: int = 10) -> str:
    """A list on one line, of at most `limit` items."""
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + more
