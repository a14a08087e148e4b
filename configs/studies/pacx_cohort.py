"""PaCX-MAE against its MAE, with controls, on the simulated cohort.

  bash launch/demo.sh                     # makes the data
  python launch/study.py configs/studies/pacx_cohort.py \\
      --data=runs/demo/data/prepared --target=runs/pacx_study --jobs=2

Each control answers "could something else explain the gain?"; docs/evidence.md says
which, and what came out. An arm takes about two minutes a seed on two cores, an MAE
five: --arms=pacx,shuffled trains these and what they start from.
"""

import dataclasses

from launch.studies import Arm, Probe, Study

MAE = "configs/mae_vitb16.py:runlocal"
DISTILL = "configs/distill_vitb16.py:runlocal"
GENERATE = "bash launch/demo.sh with a new --target, for a cohort that has it"
GROUPS = {
    "physiological": ("slvh_dlv", "heart_failure"),
    "anatomical": ("consolidation", "nodule", "hyperinflation"),
}
TEACHERS, LOSSES = ("ecg", "labs"), ("clip", "regression")
# Name, fields beside those of PaCX, what the arm tells.
CONTROLS = {
    "shuffled": (
        "Shuffled pairs",
        {"data.shuffle_pairs": True},
        "Stage 2 with ECGs and labs of other patients.",
    ),
    "shuffled_within": (
        "Shuffled within view and sex",
        {"data.shuffle_pairs": True, "data.shuffle_within": ("view", "sex")},
        "ECGs and labs of other patients of the same view and sex.",
    ),
    "random_targets": (
        "Targets of random encoders",
        {},
        "Stage 2 from encoders of ECG and labs that were never trained.",
    ),
    "report_labels": (
        "Report labels as targets",
        {
            **{f"modalities.{m}.{k}_weight": 0.0 for m in TEACHERS for k in LOSSES},
            **{f"modalities.teacher.{k}_weight": 1.0 for k in LOSSES},
            "modalities.teacher.by": "study",
        },
        "Stage 2 from what reports say of the X-ray, without physiology.",
    ),
    "ecg_only": (
        "ECG alone",
        {"modalities.labs.clip_weight": 0.0, "modalities.labs.regression_weight": 0.0},
        "Stage 2 without labs.",
    ),
    "labs_only": (
        "Labs alone",
        {"modalities.ecg.clip_weight": 0.0, "modalities.ecg.regression_weight": 0.0},
        "Stage 2 without ECGs.",
    ),
    "contrastive_only": ("InfoNCE alone", {"loss.regression_weight": 0.0}, ""),
    "regression_only": ("Regression alone", {"loss.clip_weight": 0.0}, ""),
    "fixed_temperature": (
        "Fixed temperature",
        {"loss.learn_temperature": False},
        "",
    ),
    "norms": ("Norms alone", {"tuning": "norms"}, "No LoRA: the LayerNorms learn."),
    "last_blocks": ("Last blocks", {"tuning": "last_n_blocks", "last_n_blocks": 2}, ""),
    "full": ("All weights", {"tuning": "full"}, "Stage 2 without LoRA."),
}


def get_study(data: str) -> Study:
    """The study on the demo's prepared sets, which lie in the folder `data`."""
    triplets = {"data.path": f"{data}/symile_mimic"}
    stage_two = triplets | {"total_steps": 1200, "export": "latest"}
    starts = {
        "model_init": "mae",
        "modalities.ecg.init": "ecg",
        "modalities.labs.init": "labs",
    }
    arms = {
        "mae": Arm(
            MAE,
            {"data.path": f"{data}/chexpert", "total_steps": 3000},
            name="MAE",
            role="compared",
            about="Stage 1, from which PaCX starts.",
        ),
        "ecg": Arm(
            "configs/ecg_net1d.py:runlocal",
            {"data.path": f"{data}/ecg"},
            once=True,
            probed=False,
        ),
        "labs": Arm("configs/labs_dae.py:runlocal", triplets, once=True, probed=False),
        "pacx": Arm(
            DISTILL,
            stage_two,
            starts,
            name="PaCX-MAE",
            role="compared",
            about="Stage 2: distilled from ECG and labs.",
        ),
        "mae_continued": Arm(
            MAE,
            triplets | {"total_steps": 600, "optim.warmup_steps": 30},
            {"model_init": "mae"},
            name="MAE continued",
            about="MAE trained on, for as many presentations of the same X-rays.",
        ),
    }
    for teacher in TEACHERS:  # one step at a rate of 0: the encoder as it was drawn
        trained = arms[teacher]
        fields = {**trained.fields, "total_steps": 1, "optim.peak_lr": 0.0}
        drawn = dataclasses.replace(trained, fields=fields)
        arms[f"{teacher}_random"] = drawn
    people = f"{data}/../raw/paired/symile_mimic/people.csv"
    labels = f"{data}/report_labels.npz"
    make = f"python data/label_table.py --data={data}/symile_mimic --out={labels}"
    own = {
        "shuffled_within": ({"data.shuffle_table": people}, {people: GENERATE}),
        "report_labels": ({"modalities.teacher.init": labels}, {labels: make}),
    }
    for arm, (name, fields, about) in CONTROLS.items():
        more, needs = own.get(arm, ({}, {}))
        begins = starts
        if arm == "random_targets":
            begins = starts | {f"modalities.{t}.init": f"{t}_random" for t in TEACHERS}
        fields = stage_two | fields | more
        arms[arm] = Arm(DISTILL, fields, begins, name=name, about=about, needs=needs)
    floors = ("random", "pixels", "view", "person", "permuted")
    return Study(
        arms,
        Probe(
            f"{data}/probe",
            GROUPS,
            table=f"{data}/../raw/paired/probe/labels.csv",
            within=("PA", "AP"),
            namespace="simulated",
        ),
        pairs=[
            ("pacx", a)
            for a in (*(a for a, arm in arms.items() if arm.probed), *floors)
            if a != "pacx"
        ],
        treatment="pacx",
        baseline="mae",
        floors=floors,
    )
