"""What the parity tests compare, in which precision, and by what measure."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys

import flax
import jax
import numpy as np
import pytest

from tests.parity import record, weights


def require_torch() -> None:
    """Skips without PyTorch; where CI says that it must be there, fails."""
    if sys.modules.get("torch", True) and importlib.util.find_spec("torch"):
        return
    if os.environ.get("PACX_REQUIRE_TORCH") == "1":
        pytest.fail("PyTorch is not installed, and PACX_REQUIRE_TORCH=1 wants it")
    pytest.skip("PyTorch is not installed: compared with recorded values alone")


@functools.cache
def load(source: str, name: str) -> dict[str, np.ndarray]:
    if source == "recorded":
        return record.load(name)
    from tests.parity import cases

    return cases.live(name)


@dataclasses.dataclass(frozen=True)
class Precision:
    """float32 with the bounds of the issue, or float64 with sharper ones.

    Attributes:
      name: "float32" or "float64".
      forward: largest absolute error of an output.
      gradient: largest error of a gradient, in units of its largest entry.
    """

    name: str
    forward: float
    gradient: float

    @property
    def suffix(self) -> str:
        return "64" if self.name == "float64" else ""

    def cast(self, tree):
        """Every float of a tree of arrays in this precision."""
        return jax.tree.map(
            lambda x: x.astype(self.name) if x.dtype.kind == "f" else x, tree
        )


class Case:
    """A case as the tests read it: `case.out("loss")`, `case.params("mae")`."""

    def __init__(self, arrays: dict[str, np.ndarray], precision: Precision):
        self.arrays, self.precision = arrays, precision

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """Everything under a prefix, without it."""
        found = {k.removeprefix(prefix + "/"): v for k, v in self.arrays.items()
                 if k.startswith(prefix + "/")}  # fmt: skip
        assert found, prefix
        return found

    def input(self, name: str) -> np.ndarray:
        return self.precision.cast(self.arrays[f"in/{name}"])

    def out(self, name: str) -> np.ndarray:
        return self.arrays[f"out{self.precision.suffix}/{name}"]

    def params(self, kind: str):
        """The initial weights as our tree."""
        tree = weights.import_state(kind, self.part("state"))
        return self.precision.cast(tree)

    def gradients(self, kind: str, of: str):
        return weights.import_state(kind, self.part(f"grad/{of}"))

    def final(self, kind: str):
        """What was trained, as our tree."""
        state = self.part(f"final{self.precision.suffix}")
        return weights.import_state(kind, state)


PRECISIONS = (
    Precision("float32", 1e-5, 1e-4),
    Precision("float64", 1e-10, 1e-6),  # gradients are recorded in float32
)


FLOAT32 = pytest.mark.parametrize(
    "precision", PRECISIONS[:1], ids=["float32"], indirect=True
)


def largest_error(got, want, relative: bool) -> tuple[float, str]:
    """The error of the worst array, and where that is in a tree."""
    got, want = _flat(got), _flat(want)
    assert sorted(got) == sorted(want), sorted(set(got) ^ set(want))
    worst, where = 0.0, ""
    for name, w in want.items():
        w, g = np.asarray(w, np.float64), np.asarray(got[name], np.float64)
        assert g.shape == w.shape, (name, g.shape, w.shape)
        error = np.abs(g - w).max()
        if relative and np.abs(w).max():  # what is exactly 0 must be exactly 0
            error /= np.abs(w).max()
        assert np.isfinite(error), name
        if error > worst:
            worst, where = float(error), f", at {name}" * bool(name)
    return worst, where


def _flat(tree) -> dict:
    if isinstance(tree, dict):
        return flax.traverse_util.flatten_dict(tree, sep="/")
    return {"": tree}
