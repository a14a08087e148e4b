"""PaCX-MAE's demonstration: pretraining, distillation, probes."""

from __future__ import annotations

import pathlib

from launch.curricula.stage import Stage, comparing, timed, training

ARMS = ("distill", "shuffled", "mae_continued")

# Studies of the cohort, training steps, further config overrides, and the seconds that
# stages took on two cores, for the progress bar (10 where none are given). The settings
# of DEMO were chosen on validation patients of cohort seeds 100 and up (docs/demo.md).
DEMO = {
    "cohort": dict(pretrain=6000, symile=3000, symile_size=128, symile_val=256,
                   symile_test=10, ecg=1500, probe_train=3000, probe_val=500,
                   probe_test=2000),
    "size": 96,
    "mae": {"total_steps": 3000},
    "mae_continued": {"total_steps": 600, "optim.warmup_steps": 30},
    "labs": {},
    "ecg": {},
    "distill": {"total_steps": 1200},
    "seconds": dict(cohort_pretrain=60, cohort_paired=120, mae=235, labs=13, ecg=60,
                    ceiling=37, distill=205, shuffled=205, mae_continued=57,
                    compare=55),
}  # fmt: skip
FULL = {
    "cohort": dict(pretrain=20000, symile=8000, symile_size=128, symile_val=512,
                   symile_test=10, ecg=4000, probe_train=6000, probe_val=500,
                   probe_test=4000),
    "size": 96,
    "mae": {"total_steps": 7000, "model.variant": "Ti", "data.image_size": 64,
            "optim.peak_lr": 1e-3, "optim.warmup_steps": 350},
    "mae_continued": {"total_steps": 1100, "model.variant": "Ti",
                      "data.image_size": 64, "optim.peak_lr": 1e-3,
                      "optim.warmup_steps": 55},
    "labs": {"total_steps": 2000},
    "ecg": {"total_steps": 1000},
    "distill": {"total_steps": 2200, "data.image_size": 64, "optim.peak_lr": 1e-3,
                "optim.warmup_steps": 110},
    "seconds": dict(cohort_pretrain=210, cohort_paired=270, mae=2500, labs=30, ecg=200,
                    ceiling=80, distill=2300, shuffled=2300, mae_continued=400,
                    compare=500),
}  # fmt: skip


# For tests of the machinery: every stage, a few steps. Its numbers mean nothing.
TINY = {
    "cohort": dict(pretrain=40, symile=100, symile_size=64, symile_val=12,
                   symile_test=10, ecg=40, probe_train=60, probe_val=20, probe_test=40),
    "size": 48,
    "mae": {"total_steps": 4, "global_batch_size": 8},
    "mae_continued": {"total_steps": 2, "global_batch_size": 8},
    "labs": {"total_steps": 2},
    "ecg": {"total_steps": 2, "global_batch_size": 8, "best": "", "export": "latest"},
    "distill": {"total_steps": 2, "global_batch_size": 8},
    "seconds": {},
}  # fmt: skip


def curriculum(
    target: pathlib.Path, plan: dict, seed: int, split: str, seeds: int
) -> list[Stage]:
    """The stages, each after those that it needs.

    The X-ray encoders are trained by `seeds` seeds, from pretraining on. The cohort and
    the encoders of ECGs and labs are the same for all.
    """
    data = target / "data"
    raw, prepared = data / "raw", data / "prepared"
    cohort = plan["cohort"]
    nothing = dict.fromkeys(cohort, 0) | {"symile_size": cohort["symile_size"]}
    stages = []
    for name, sizes in (
        ("pretrain", nothing | {"pretrain": cohort["pretrain"]}),
        ("paired", cohort | {"pretrain": 0}),
    ):
        argv = ["data/cohort/generate.py", f"--target={raw / name}", f"--seed={seed}"]
        argv += [f"--{k}={v}" for k, v in sizes.items()]
        stages.append(Stage(f"cohort_{name}", argv, (), says="simulated patients"))
    for name, builder, folder in (
        ("prepare_cxr", "chexpert", "pretrain/chexpert"),
        ("prepare_ecg", "ecg_array", "paired/ecg"),
        ("prepare_triplets", "symile_mimic", "paired/symile_mimic"),
        ("prepare_probe", "folder", "paired/probe"),
    ):
        argv = ["data/prepare.py", builder, f"--source={raw / folder}", "--workers=1"]
        argv += [f"--target={prepared / pathlib.Path(folder).name}"]
        if builder != "ecg_array":
            argv += [f"--size={plan['size']}"]
        needs = (f"cohort_{folder.split('/')[0]}",)
        stages.append(Stage(name, argv, needs, says="as ArrayRecord"))
    mae = {"data.path": f"{prepared}/chexpert"}
    triplets = {"data.path": f"{prepared}/symile_mimic"}
    ecg = {"data.path": f"{prepared}/ecg"}
    argv = ["launch/compare.py", f"--target={target}"]
    for k in range(seeds):
        first = training("mae", k)
        continued = triplets | {"model_init": target / first}
        distill = continued | {
            "modalities.ecg.init": target / "ecg",
            "modalities.labs.init": target / "labs",
            "cache_dir": target / "cache",
        }
        shuffled = distill | {"data.shuffle_pairs": True}
        teachers, seed_k = (first, "ecg", "labs"), seed + k
        stages += [
            _train(target, plan, seed_k, "mae", "mae_vitb16", mae, ("prepare_cxr",), k),
            _train(target, plan, seed_k, "distill", "distill_vitb16", distill,
                   teachers, k),
            _train(target, plan, seed_k, "shuffled", "distill_vitb16", shuffled,
                   teachers, k),
            _train(target, plan, seed_k, "mae_continued", "mae_vitb16", continued,
                   (first,), k),
        ]  # fmt: skip
    stages += [
        _train(target, plan, seed, "labs", "labs_dae", triplets,
               ("prepare_triplets",)),
        _train(target, plan, seed, "ecg", "ecg_net1d", ecg, ("prepare_ecg",)),
        Stage("ceiling", [*argv, "--ceiling"], ("ecg", "labs", "prepare_probe")),
        comparing([*argv, f"--split={split}"], ARMS, ("ceiling",), seeds),
    ]  # fmt: skip
    return timed(stages, plan["seconds"])


def _train(target, plan, seed, name, recipe, fields, needs, k=0) -> Stage:
    fields = fields | {"seed": seed}
    fields |= plan["distill" if name == "shuffled" else name]
    if recipe == "distill_vitb16":  # all arms at their last step: a fair comparison
        fields |= {"export": "latest"}
    argv, name = ["-m", "pacx_jax.main"], training(name, k)
    argv += [f"--config=configs/{recipe}.py:runlocal", f"--workdir={target / name}"]
    argv += [f"--config.{k}={v}" for k, v in fields.items()]
    return Stage(name, argv, needs, makes=(f"{name}/done.json",))
