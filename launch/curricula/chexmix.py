"""CheXmix's demonstration: X-rays and reports in one sequence, two stages, probes."""

from __future__ import annotations

import pathlib

from launch.curricula.stage import (
    Stage,
    comparing,
    reports_and_probe,
    timed,
    training,
)

# Trained arms; `continued` goes on causally for as long as `masked` does with masks.
ARMS = ("masked", "continued", "mae")
RESULTS = "launch/compare_tokens.py"

# As in pacx.py.
DEMO = {
    "cohort": dict(mimic=4000, mimic_valid=200, mimic_test=200, probe_train=1500,
                   probe_val=300, probe_test=1000),
    "film_size": 128,
    "size": 96,
    "vocab_size": 2000,
    "vq": {"total_steps": 600},
    "causal": {"total_steps": 900},
    "masked": {"total_steps": 600},
    "mae": {"total_steps": 1500},
    "seconds": dict(cohort_pretrain=33, cohort_probe=105, vq=100, causal=370,
                    masked=250, continued=255, mae=100, compare=80),
}  # fmt: skip
FULL = {
    "cohort": dict(mimic=20000, mimic_valid=400, mimic_test=400, probe_train=6000,
                   probe_val=500, probe_test=3000),
    "film_size": 128,
    "size": 96,
    "vocab_size": 2000,
    "vq": {"total_steps": 4000, "data.image_size": 64},
    "causal": {"total_steps": 5000, "model.variant": "Ti", "data.image_size": 64,
               "optim.peak_lr": 1e-3, "optim.warmup_steps": 250},
    "masked": {"total_steps": 3000, "model.variant": "Ti", "data.image_size": 64,
               "optim.peak_lr": 1e-3, "optim.warmup_steps": 150},
    "mae": {"total_steps": 8000, "model.variant": "Ti", "data.image_size": 64,
            "optim.peak_lr": 1e-3, "optim.warmup_steps": 400},
    "seconds": {},
}  # fmt: skip
TINY = {
    "cohort": dict(mimic=40, mimic_valid=12, mimic_test=12, probe_train=60,
                   probe_val=20, probe_test=40),
    "film_size": 64,
    "size": 48,
    "vocab_size": 1000,
    "vq": {"total_steps": 2, "global_batch_size": 8, "optim.warmup_steps": 1},
    "causal": {"total_steps": 4, "global_batch_size": 8, "optim.warmup_steps": 1,
               "model.variant": "mu"},
    "masked": {"total_steps": 2, "global_batch_size": 8, "optim.warmup_steps": 1,
               "model.variant": "mu"},
    "mae": {"total_steps": 2, "global_batch_size": 8},
    "seconds": {},
}  # fmt: skip


def curriculum(
    target: pathlib.Path, plan: dict, seed: int, split: str, seeds: int
) -> list[Stage]:
    """The stages, each after those that it needs.

    The image tokenizer and the tokenizer of reports are the same for all trainings.
    """
    # The probe's patients need others, whose laboratory values theirs are ranked by.
    ranked = {"symile": 100, "symile_val": 10, "symile_test": 10, "symile_size": 16}
    about = (target, plan, seed, "probe", "probe")
    stages, data, words = reports_and_probe(*about, **ranked, masks=-1)
    vq = target / "vq"

    def train(name, recipe, settings, fields, needs, k=0):
        fields = {"data.path": data, "export": "latest", "seed": seed + k} | fields
        argv = ["-m", "pacx_jax.main", f"--config=configs/{recipe}.py:runlocal"]
        argv += [f"--workdir={target / name}"]
        argv += [f"--config.{k}={v}" for k, v in (fields | plan[settings]).items()]
        stages.append(Stage(name, argv, needs, makes=(f"{name}/done.json",)))

    train("vq", "vq_f16", "vq", {}, ("prepare_pretrain",))
    text = {"data.tokenizer": words}
    for k in range(seeds):
        first = training("causal", k)
        start = text | {"vq_init": "", "model_init": target / first}
        each = "tokenizer", "vq"
        train(first, "chexmix_vitb", "causal", text | {"vq_init": vq}, each, k)
        for arm, stage in (("masked", "masked"), ("continued", "causal")):
            name = training(arm, k)
            fields = start | {"stage": stage}
            train(name, "chexmix_vitb", "masked", fields, (first,), k)
        train(training("mae", k), "mae_vitb16", "mae", {}, ("prepare_pretrain",), k)
    argv = [RESULTS, f"--target={target}", f"--split={split}"]
    stages.append(comparing(argv, ARMS, ("prepare_probe",), seeds))
    return timed(stages, plan["seconds"])
