"""Laboratory values as percentiles of a training set, missing ones as its mean.

Source: Symile-MIMIC's construction. The percentile of x is
the share of the training admissions' observed values that are at most x: an empirical
distribution function, right-continuous, 0 below the smallest value and 1 from the
largest on. Letters: n admissions, f items.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import zipfile
from collections.abc import Sequence

import numpy as np

from pacx_jax.errors import PacxError

LARGEST = 2**26  # bytes: 80,000 values of each of 50 items
FILE = "labs_percentiles.npz"  # its name in a prepared set
VITALS = "vitals_percentiles.npz"  # that of vital signs
NO_MEAN = 0.5  # stands for an item that no training admission has


@dataclasses.dataclass(frozen=True, eq=False)
class Percentiles:
    """The distribution of each item in a training set.

    Attributes:
      items: f item ids.
      means: float64 (f,), mean percentile of the observed training values.
      values: for each item its distinct training values, ascending; empty where the
        training set has none.
      shares: for each item the percentile of each of these values, in (0, 1].
    """

    items: tuple[int, ...]
    means: np.ndarray
    values: tuple[np.ndarray, ...]
    shares: tuple[np.ndarray, ...]

    def apply(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Raw values (n, f), NaN where missing, to percentiles and mask.

        Returns:
          labs float32 (n, f) in [0, 1], the mean percentile where the mask is 0; and
          mask float32 (n, f), 1 = observed. An item that the training set lacks
          cannot be mapped and counts as missing.
        """
        raw = np.asarray(raw, np.float64)
        if raw.ndim != 2 or raw.shape[1] != len(self.items):
            raise PacxError(
                f"laboratory values of shape {raw.shape}; it must be (admissions, "
                f"{len(self.items)})"
            )
        labs = np.tile(self.means, (len(raw), 1)).astype(np.float32)
        mask = np.zeros(raw.shape, np.float32)
        for j, (values, shares) in enumerate(
            zip(self.values, self.shares, strict=True)
        ):
            seen = ~np.isnan(raw[:, j])
            if len(values):
                steps = np.concatenate([[0.0], shares])
                labs[seen, j] = steps[np.searchsorted(values, raw[seen, j], "right")]
                mask[seen, j] = 1
        return labs, mask

    def to_bytes(self) -> bytes:
        """The contents of an .npz file, the same for the same percentiles."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            items=np.array(self.items, np.int64),
            means=self.means,
            offsets=np.cumsum([0, *map(len, self.values)]),
            values=np.concatenate(self.values),
            shares=np.concatenate(self.shares),
        )
        return buffer.getvalue()


def fit(raw: np.ndarray, items: Sequence[int]) -> Percentiles:
    """Fits training values (n, f), NaN where missing.

    As Symile's: the sorted values have the percentiles linspace(1/n, 1, n), and equal
    values that of the last of them.
    """
    raw = np.asarray(raw, np.float64)
    values, shares, means = [], [], []
    for column in raw.T:
        seen = np.sort(column[~np.isnan(column)])
        n = len(seen)
        steps = np.linspace(1 / max(n, 1), 1, n)
        last = np.flatnonzero(np.append(np.diff(seen) > 0, True)[:n])
        values.append(seen[last])
        shares.append(steps[last])
        at = np.searchsorted(seen[last], seen)
        means.append(steps[last][at].mean() if n else NO_MEAN)
    return Percentiles(
        tuple(map(int, items)), np.array(means), tuple(values), tuple(shares)
    )


def load(path: str | os.PathLike, name: str = FILE) -> Percentiles:
    """Reads what `to_bytes` gave, or the prepared set that holds it as `name`."""
    path = os.path.join(path, name) if os.path.isdir(path) else os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > LARGEST:
            raise ValueError(f"{unpacked} bytes, where at most {LARGEST} are read")
        with np.load(path, allow_pickle=False) as file:
            offsets = file["offsets"]
            values, shares = (
                tuple(file[k][a:b] for a, b in itertools.pairwise(offsets))
                for k in ("values", "shares")
            )
            items, means = tuple(file["items"].tolist()), file["means"]
    except FileNotFoundError:
        raise PacxError(f"{path}: no such file") from None
    except Exception as error:  # a damaged archive makes NumPy raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise PacxError(f"{path}: not a table of percentiles ({reason})") from None
    lengths = {len(items), len(means), len(values)}
    if len(lengths) != 1 or any(
        len(v) != len(s) for v, s in zip(values, shares, strict=True)
    ):
        raise PacxError(f"{path}: not a table of percentiles (its parts do not fit)")
    return Percentiles(items, means, values, shares)
