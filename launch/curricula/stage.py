"""One process of a demonstration."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass
class Stage:
    """One process of the curriculum.

    Attributes:
      name: also of its log, runs/demo/logs/<name>.log.
      argv: the command after the Python interpreter.
      needs: names of stages that must be finished before.
      weight: its share of the progress bar, in seconds on two cores.
      cores: how many halves of the machine it takes.
      says: what its line in the terminal adds.
      makes: files in the target without which it is not done.
    """

    name: str
    argv: list[str]
    needs: tuple[str, ...]
    weight: float = 10
    cores: int = 1
    says: str = ""
    makes: tuple[str, ...] = ()


def training(name: str, k: int) -> str:
    """The name of stage and workdir of an arm's training k: mae, mae_2, mae_3."""
    return name if k == 0 else f"{name}_{k + 1}"


def comparing(argv: list[str], arms: list[str], more: tuple[str, ...], seeds: int):
    """The last stage: a comparison of all trainings, made again when some are added."""
    needs = tuple(training(arm, k) for k in range(seeds) for arm in arms)
    made = ("summary.json", "comparison.txt", "report.html")
    argv = [*argv, f"--seeds={seeds}"]
    name = training("compare", seeds - 1)
    return Stage(name, argv, (*needs, *more), cores=2, makes=made)


def timed(stages: list[Stage], seconds: dict[str, float]) -> list[Stage]:
    """The stages, whose weights are the seconds that they are known to take."""
    for stage in stages:
        stage.weight = seconds.get(re.sub(r"_\d+$", "", stage.name), stage.weight)
    return stages
