"""Train, val and test: official lists, and sklearn's draws with seed 42.

`strict` policies draw patients, `reference` policies what the authors' code drew, which
often is images. The same functions serve both: only the unit that is drawn differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pacx_jax.errors import PacxError

POLICIES = ("strict", "reference")
NAMES = ("train", "val", "test")
SEED = 42  # of the authors' code, in every data set


@dataclasses.dataclass(frozen=True)
class Policy:
    """How the rows of a data set become train, val and test.

    Attributes:
      keep: official splits that stay what they are. All other rows are one pool.
      test: share of the pool that is drawn for test, first.
      val: share of what is left that is drawn for val; of test's draw if `halve`.
      by_patient: whether patients are drawn, and stay in one split, or images.
      stratified: whether draws keep the share of positives; a patient with any
        positive image is one.
      halve: val is drawn from what was drawn for test, not from what was left.
    """

    keep: tuple[str, ...] = ()
    test: float = 0.0
    val: float = 0.0
    by_patient: bool = False
    stratified: bool = False
    halve: bool = False


def assign(
    policy: Policy,
    official: Sequence[str],
    patients: Sequence[str],
    strata: Sequence[float],
) -> tuple[list[str], list[str]]:
    """The split of each row, "" for rows that are left out, and what to tell.

    Args:
      policy: how to split.
      official: the published split of each row, "" without one.
      patients: the patient of each row, "" where not known.
      strata: 1 for a positive row, else 0; NaN counts as 0, as the reference has it.
    """
    notes = []
    splits = [name if name in policy.keep else "train" for name in official]
    if policy.by_patient:
        left_out = _leave_out_shared(splits, patients)
        if left_out:
            notes.append(
                f"{left_out} images of patients who are also in a later official "
                "split are left out"
            )
        if not all(patients):
            notes.append(
                f"{sum(not p for p in patients)} images have no known patient and "
                "are drawn one by one"
            )
    pool = [i for i, name in enumerate(splits) if name == "train"]
    units: dict[str, list[int]] = {}
    for i in pool:
        known = policy.by_patient and patients[i]
        units.setdefault(f"={patients[i]}" if known else f"#{i:09}", []).append(i)
    keys = list(units)
    if policy.by_patient:
        keys = _in_order(keys)
    high = np.array([any(strata[i] == 1 for i in units[key]) for key in keys], int)
    drawn = _draw(policy, high, notes)
    for key, name in zip(keys, drawn, strict=True):
        for i in units[key]:
            splits[i] = name
    return splits, notes


def _leave_out_shared(splits: list[str], patients: Sequence[str]) -> int:
    """Empties the split of rows whose patient is in val or test too; how many."""
    last: dict[str, str] = {}
    for split, patient in zip(splits, patients, strict=True):
        last[patient] = max(last.get(patient, split), split, key=NAMES.index)
    left_out = 0
    for i, patient in enumerate(patients):
        if patient and splits[i] != last[patient]:
            splits[i] = ""
            left_out += 1
    return left_out


def _in_order(keys: list[str]) -> list[str]:
    """Patients in the order in which a data frame groups them: numbers by value."""
    if all(key[1:].isdecimal() for key in keys):
        return sorted(keys, key=lambda key: (key[0], int(key[1:])))
    return sorted(keys)


def _draw(policy: Policy, high: np.ndarray, notes: list[str]) -> np.ndarray:
    """The split of each unit of the pool."""
    names = np.full(len(high), "train", dtype="<U5")
    rest = np.arange(len(high))
    if policy.test:
        rest, test = _cut(rest, policy.test, policy, high, notes)
        names[test] = "test"
        if policy.halve:
            val, _ = _cut(test, policy.val, policy, high, notes)
            names[val] = "val"
            return names
    if policy.val:
        _, val = _cut(rest, policy.val, policy, high, notes)
        names[val] = "val"
    return names


def _cut(
    units: np.ndarray,
    share: float,
    policy: Policy,
    high: np.ndarray,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split  # takes seconds to import

    if len(units) < 2:
        raise PacxError(
            f"{len(units)} images or patients are too few to draw {share:.0%} from; "
            "is the data set whole?"
        )
    strata = high[units] if policy.stratified else None
    try:
        return train_test_split(
            units, test_size=share, random_state=SEED, stratify=strata
        )
    except ValueError:  # a stratum with fewer than two units, or none to draw
        notes.append(f"too few to stratify the draw of {share:.0%} of {len(units)}")
        return train_test_split(units, test_size=share, random_state=SEED)
