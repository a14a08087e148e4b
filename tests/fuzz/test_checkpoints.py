"""Saved steps that are damaged or cut off: 200 faults, no wrong and no lost state.

With `--soak_minutes=N` others follow, at random.
"""

import numpy as np

from tests.fuzz import checkpoints


def generator(n: int) -> np.random.Generator:
    """The same in round 0 of every run, another in each round that follows."""
    return np.random.default_rng(None if n else 0)


def test_190_damaged_files_never_give_a_wrong_or_a_lost_state(tmp_path, rounds):
    pristine, kinds = tmp_path / "pristine", set()
    checkpoints.save_steps(pristine)
    for n in rounds:
        rng = generator(n)
        for _ in range(190):
            told = checkpoints.damaged_trial(pristine, rng)
            kinds |= {part.split()[0] for part in told.split(", ")}
    assert kinds == set(checkpoints.KINDS)
    assert checkpoints.restored(pristine) == 9


def test_10_processes_killed_while_they_save_lose_nothing_that_was_saved(
    tmp_path, rounds
):
    for n in rounds:
        found = checkpoints.killed_trials(tmp_path / str(n), generator(n), 10)
        assert len(found) == 10 and found == sorted(set(found))
