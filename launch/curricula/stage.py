"""One process of a demonstration."""

from __future__ import annotations

import dataclasses


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


def timed(stages: list[Stage], seconds: dict[str, float]) -> list[Stage]:
    """The stages, whose weights are the seconds that they are known to take."""
    for stage in stages:
        stage.weight = seconds.get(stage.name, stage.weight)
    return stages
