"""One process of a demonstration."""

from __future__ import annotations

import dataclasses
import pathlib
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


def reports_and_probe(
    target: pathlib.Path, plan: dict, seed: int, folder: str, prefix: str, **probe: int
) -> tuple[list[Stage], pathlib.Path, pathlib.Path]:
    """The stages before any training of a method that learns from studies with reports.

    Args:
      plan: its `cohort` holds sizes of MIMIC-CXR's layout, which is pretrained on, and
        those that start with `prefix`, of the probe's patients in `folder`.
      probe: further flags of the cohort of the probe's patients.

    Returns:
      Simulation and preparation of both, and the tokenizer of the training reports; the
      prepared set to pretrain on; the tokenizer's file.
    """
    raw, prepared = target / "data" / "raw", target / "data" / "prepared"
    cohort, words = plan["cohort"], target / "tokenizer.json"
    none = ("pretrain", "symile", "symile_val", "symile_test", "ecg", *cohort)
    none = dict.fromkeys((*none, "probe_train", "probe_val", "probe_test"), 0)
    none |= {"film_size": plan["film_size"]}
    stages = []
    for name, kind, more in (("pretrain", "mimic", {}), ("probe", prefix, probe)):
        sizes = none | {k: v for k, v in cohort.items() if k.startswith(kind)} | more
        argv = ["data/cohort/generate.py", f"--target={raw / name}", f"--seed={seed}"]
        argv += [f"--{k}={v}" for k, v in sizes.items()]
        stages.append(Stage(f"cohort_{name}", argv, (), says="simulated patients"))
    for name, builder, source, more in (
        ("pretrain", "mimic_cxr", "mimic_cxr", []),
        ("probe", "folder", folder, ["--masks=masks"] if "masks" in probe else []),
    ):
        argv = ["data/prepare.py", builder, f"--source={raw / name / source}"]
        argv += ["--workers=1", f"--target={prepared / source}"]
        argv += [f"--size={plan['size']}", *more]
        needs = (f"cohort_{name}",)
        stages.append(Stage(f"prepare_{name}", argv, needs, says="as ArrayRecord"))
    data = prepared / "mimic_cxr"
    argv = ["-m", "pacx_jax", "tokenizer", f"--data={data}", f"--target={words}"]
    argv += [f"--vocab_size={plan['vocab_size']}", "--sections=findings,impression"]
    stages.append(Stage("tokenizer", argv, ("prepare_pretrain",), says="of reports"))
    return stages, data, words


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
