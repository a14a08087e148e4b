"""PaCX-MAE against its MAE, with controls, on the simulated cohort.

  bash launch/demo.sh                     # makes the data
  python launch/study.py configs/studies/pacx_cohort.py \\
      --data=runs/demo/data/prepared --target=runs/pacx_study --jobs=2

Each control answers "could something else explain the gain?"; docs/evidence.md says
which. All of them with five seeds take a day on two cores: --arms=pacx,shuffled trains
these and what they start from.
"""

from launch.studies import Arm, Probe, Study

MAE = "configs/mae_vitb16.py:runlocal"
DISTILL = "configs/distill_vitb16.py:runlocal"
GROUPS = {
    "physiological": ("slvh_dlv", "heart_failure"),
    "anatomical": ("consolidation", "nodule", "hyperinflation"),
}
# Name, fields beside those of PaCX, what the arm tells.
CONTROLS = {
    "shuffled": (
        "Shuffled pairs",
        {"data.shuffle_pairs": True},
        "Stage 2 with ECGs and labs of other patients.",
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
    for arm, (name, fields, about) in CONTROLS.items():
        arms[arm] = Arm(DISTILL, stage_two | fields, starts, name=name, about=about)
    floors = ("random", "pixels", "view", "person", "permuted")
    return Study(
        arms,
        Probe(
            f"{data}/probe",
            GROUPS,
            table=f"{data}/../raw/paired/probe/labels.csv",
            within=("PA", "AP"),
        ),
        pairs=[
            ("pacx", a) for a in (*arms, *floors) if a not in ("pacx", "ecg", "labs")
        ],
        treatment="pacx",
        baseline="mae",
        floors=floors,
    )
