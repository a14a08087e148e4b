"""MVMAE's demonstration: studies of two views, aligned and with reports, and probes."""

from __future__ import annotations

import pathlib

from launch.curricula.stage import (
    Stage,
    comparing,
    reports_and_probe,
    timed,
    training,
)

# Each goes on, for as many steps, from the same views reconstructed one by one: an
# alignment from the first step on makes all embeddings alike (docs/mvmae.md).
ARMS = ("independent", "mvmae", "v2t")
ALIGNED = {"loss.align": "infonce", "loss.temperature": 0.1, "loss.beta": 0.3,
           "loss.beta_schedule": "constant"}  # fmt: skip
RESULTS = "launch/compare_views.py"

# As in pacx.py. docs/demo.md says what was tried, and on which patients.
DEMO = {
    "cohort": dict(mimic=5000, mimic_valid=200, mimic_test=0, views_train=1500,
                   views_val=300, views_test=1000),
    "film_size": 128,
    "size": 96,
    "vocab_size": 2000,
    "start": {"total_steps": 1200},
    "train": {"total_steps": 800, "optim.peak_lr": 5e-4, "optim.warmup_steps": 40,
              "loss.mask_ratio": 0.5},
    "seconds": dict(cohort_pretrain=60, cohort_probe=100, start=180, independent=150,
                    mvmae=150, v2t=200, compare=60),
}  # fmt: skip
FULL = {
    "cohort": dict(mimic=20000, mimic_valid=400, mimic_test=0, views_train=6000,
                   views_val=500, views_test=3000),
    "film_size": 128,
    "size": 96,
    "vocab_size": 2000,
    "start": {"total_steps": 4200, "model.variant": "Ti", "data.image_size": 64,
              "optim.peak_lr": 1e-3, "optim.warmup_steps": 210},
    "train": {"total_steps": 2800, "model.variant": "Ti", "data.image_size": 64,
              "optim.peak_lr": 2.5e-4, "optim.warmup_steps": 140,
              "loss.mask_ratio": 0.5},
    "seconds": {},
}  # fmt: skip
TINY = {
    "cohort": dict(mimic=40, mimic_valid=12, mimic_test=0, views_train=60, views_val=20,
                   views_test=40),
    "film_size": 64,
    "size": 48,
    "vocab_size": 1000,
    "start": {"total_steps": 4, "global_batch_size": 8, "optim.warmup_steps": 1,
              "model.variant": "mu", "model.decoder.width": 32,
              "model.decoder.depth": 1},
    "train": {"total_steps": 4, "global_batch_size": 8, "optim.warmup_steps": 1,
              "model.variant": "mu", "model.decoder.width": 32,
              "model.decoder.depth": 1},
    "text": {"caption.width": 32, "caption.depth": 1, "caption.mlp_dim": 32},
    "seconds": {},
}  # fmt: skip


def curriculum(
    target: pathlib.Path, plan: dict, seed: int, split: str, seeds: int
) -> list[Stage]:
    """The stages, each after those that it needs."""
    stages, data, words = reports_and_probe(target, plan, seed, "views_probe", "views")
    data = {"data.path": data, "export": "latest"}
    text = {"data.tokenizer": words} | plan.get("text", {})
    more = {"independent": {"loss.beta": 0.0}, "mvmae": ALIGNED, "v2t": ALIGNED | text}

    def train(arm, k, recipe, fields, needs):
        argv = ["-m", "pacx_jax.main", f"--config=configs/{recipe}.py:runlocal"]
        name = training(arm, k)
        argv += [f"--workdir={target / name}"]
        chosen = data | {"seed": seed + k} | fields
        argv += [f"--config.{k}={v}" for k, v in chosen.items()]
        stages.append(Stage(name, argv, needs, makes=(f"{name}/done.json",)))

    for k in range(seeds):
        first = training("start", k)
        fields = plan["start"] | more["independent"]
        train("start", k, "mvmae_vitb16", fields, ("prepare_pretrain",))
        for arm in ARMS:
            recipe = "mvmae_v2t_vitb16" if arm == "v2t" else "mvmae_vitb16"
            fields = plan["train"] | more[arm] | {"model_init": target / first}
            needs = (first, "tokenizer") if arm == "v2t" else (first,)
            train(arm, k, recipe, fields, needs)
    argv = [RESULTS, f"--target={target}", f"--split={split}"]
    stages.append(comparing(argv, ARMS, ("prepare_probe",), seeds))
    return timed(stages, plan["seconds"])
