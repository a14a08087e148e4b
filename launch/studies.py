"""What a study is: arms, training seeds, and the probes that compare them.

A file of configs/studies/ has `get_study(data)`, which returns a `Study` that
launch/study.py runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pathlib
import string
from collections.abc import Mapping, Sequence

from pacx_jax.errors import PacxError

FLOORS = ("random", "pixels", "view", "person", "permuted")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training an encoder.

    Attributes:
      recipe: as `--config` takes it: configs/mae_vitb16.py:runlocal.
      fields: config field -> value.
      starts: config field -> the arm whose run of the same seed it names.
      given: an encoder that is not trained here: its folder, of a converted one say, or
        {NAME}, the run of the arm NAME of the same seed. {seed} in it is the training
        seed, of an encoder that was trained elsewhere several times. `recipe` is then
        "".
      pooling: "cls" or "mean", if not the encoder's own embedding.
      once: trained by the first seed alone, for all: a teacher, whose randomness is
        then no part of the comparison.
      probed: whether it is an X-ray encoder to compare.
      name: for people.
      role: "compared", "floor" or "ceiling".
      about: a sentence, what it tells.
      needs: file -> the command that makes it, of what training reads besides data.
    """

    recipe: str
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    starts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    given: str = ""
    pooling: str = ""
    once: bool = False
    probed: bool = True
    name: str = ""
    role: str = "floor"
    about: str = ""
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if bool(self.recipe) == bool(self.given):
            raise PacxError(
                f"arm {self.name!r}: give a recipe to train, or `given`, a folder"
            )

    def after(self) -> set[str]:
        """The arms that must be trained before."""
        return {*self.starts.values(), *self._named()} - {"seed"}

    @property
    def seeded(self) -> bool:
        """Whether `given` names another folder for each training seed by {seed}."""
        return "seed" in self._named()

    def _named(self) -> set[str]:
        try:
            parts = list(string.Formatter().parse(self.given))
        except ValueError as e:
            raise PacxError(
                f"given={self.given!r}: {e}; an arm or {{seed}} in braces, or a folder"
            ) from None
        names = {name for _, name, _, _ in parts if name is not None}
        if "" in names:
            raise PacxError(
                f"given={self.given!r}: name an arm, or seed, in the braces"
            )
        return names


@dataclasses.dataclass(frozen=True)
class Probe:
    """Linear probes on one labelled set.

    Attributes:
      path: a prepared set with the splits train and val or test.
      groups: name -> labels over which a macro mean is taken.
      fractions: of the labelled training studies.
      subsets: label subsets of each fraction below 1.
      table: a CSV of path (or file), age and sex, for the floor "person"; "": none.
      within: views within which the comparison is made again, e.g. PA and AP.
      beside: further prepared sets that encoders are asked to tell from this one, see
        `evaluate.source_probe`.
      namespace: whose patients the set's ids are, where it does not say itself; see
        config.data.namespace.
    """

    path: str
    groups: Mapping[str, Sequence[str]]
    fractions: Sequence[float] = (0.01, 0.1, 1.0)
    subsets: int = 10
    table: str = ""
    within: Sequence[str] = ()
    beside: Sequence[str] = ()
    namespace: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of arms and training seeds, and what is asked of it.

    Attributes:
      arms: in the order of the tables.
      probe: what they are compared by.
      pairs: (a, b) arms or floors, whose difference a - b is wanted.
      treatment, baseline: the arms of the first question.
      floors: of FLOORS.
      name: under which the spread over its trainings is recorded, see `spreads`.
    """

    arms: Mapping[str, Arm]
    probe: Probe
    pairs: Sequence[tuple[str, str]]
    treatment: str
    baseline: str
    floors: Sequence[str] = ("random", "pixels", "view", "permuted")
    name: str = ""

    def __post_init__(self):
        if "seed" in self.arms:
            raise PacxError(
                "an arm is called 'seed', which {seed} stands for: rename it"
            )
        known = {*self.arms, *self.floors}
        for arm, about in self.arms.items():
            for start in sorted(about.after()):
                if start not in self.arms:
                    raise PacxError(f"arm {arm!r} starts from {start!r}, no arm here")
        named = {
            self.treatment,
            self.baseline,
            *(x for pair in self.pairs for x in pair),
        }
        for name in sorted(named - known):
            near = difflib.get_close_matches(name, known, 1)
            raise PacxError(
                f"pairs name the arm {name!r}, which is not there"
                + (f": is it {near[0]!r}?" if near else "")
            )
        if wrong := set(self.floors) - set(FLOORS):
            raise PacxError(f"floor {min(wrong)!r}: choose of {', '.join(FLOORS)}")
        if "person" in self.floors and not self.probe.table:
            raise PacxError("the floor 'person' takes a table of path, age and sex")
        self.levels()

    def levels(self) -> list[list[str]]:
        """Arms that can be trained at once, each level after those before it."""
        found, left = [], dict(self.arms)
        while left:
            ready = [a for a, x in left.items() if not x.after() & set(left)]
            if not ready:
                raise PacxError(f"arms start from each other: {', '.join(left)}")
            found.append(ready)
            left = {a: x for a, x in left.items() if a not in ready}
        return found

    def single(self, arm: str) -> bool:
        """Whether an arm is the same encoder for all training seeds."""
        about = self.arms[arm]
        if not about.given:
            return about.once
        return not about.seeded and all(map(self.single, about.after()))

    def folder(self, target: str, arm: str, seed: int) -> str:
        """Where an arm's run of a seed lies, or the encoder that is given."""
        about = self.arms[arm]
        if about.given:
            runs = {a: self.folder(target, a, seed) for a in about.after()}
            return about.given.format(**runs, seed=seed)
        return f"{target}/{arm}" if about.once else f"{target}/{arm}-seed_{seed}"


def check_trainings(prints: Mapping[str, str]) -> None:
    """PacxError where one training stands for two, which would hide the spread.

    Args:
      prints: name of each training of an arm -> the encoder's fingerprint.
    """
    first: dict[str, str] = {}
    for name, fingerprint in prints.items():
        same = first.setdefault(fingerprint, name)
        if same != name:
            raise PacxError(
                f"{name} is the same encoder as {same}: one training a seed is taken; "
                "train it with a seed of its own, or ask for fewer --seeds"
            )


def read(path: str, data: str) -> Study:
    """The study of a file such as configs/studies/pacx_cohort.py."""
    name = path.removesuffix(".py").replace("/", ".")
    if name.startswith("."):
        raise PacxError(f"{path}: give a study by its path within the checkout")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name and name.startswith(e.name):
            raise PacxError(f"{path}: no such study; see configs/studies") from None
        raise
    if not hasattr(module, "get_study"):
        raise PacxError(
            f"{path}: no study, as it has no get_study; see configs/studies"
        )
    return dataclasses.replace(module.get_study(data), name=pathlib.Path(path).stem)
