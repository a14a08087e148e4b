"""Do encoders of simulated patients help on real X-rays, and an MAE trained on these?

  bash launch/demo.sh                     # simulated patients
  python data/prepare.py folder --source=DIR --csv=DIR/metadata.csv \\
      --label_columns=Pneumonia --path_column=file --patient_column=patient_id \\
      --val_fraction=0.1 --test_fraction=0.4 --size=96 \\
      --target=runs/demo/data/prepared/real
  cp DIR/metadata.csv runs/demo/data/prepared/real.csv     # age and sex, a floor
  python launch/study.py configs/studies/real_xrays.py \\
      --data=runs/demo/data/prepared --target=runs/real_study --seeds=5 --jobs=2

DIR holds frontal X-rays with a table of file, patient, view, age, sex and findings.
Sick patients are filmed lying down, so the comparison is made within each view too.
"""

from configs.studies import pacx_cohort
from launch.studies import Arm, Probe, Study

LABEL = "Pneumonia"


def get_study(data: str) -> Study:
    """The study on the set `real` in the folder `data`, beside the demo's sets."""
    arms = pacx_cohort.get_study(data).arms
    arms = {name: arms[name] for name in ("mae", "ecg", "labs", "pacx")}
    arms["mae_real"] = Arm(
        pacx_cohort.MAE,
        {"data.path": f"{data}/real", "data.simulated": False, "total_steps": 1000},
        name="MAE of these X-rays",
        role="compared",
        about="Stage 1 on the probe's own training X-rays, without their labels.",
    )
    floors = ("random", "pixels", "view", "person", "permuted")
    return Study(
        arms,
        Probe(
            f"{data}/real",
            {LABEL.lower(): (LABEL,)},
            fractions=(0.1, 1.0),
            table=f"{data}/real.csv",
            within=("PA", "AP"),
        ),
        pairs=[
            ("pacx", "mae"),
            ("mae_real", "mae"),
            *((a, f) for a in ("pacx", "mae_real") for f in floors),
        ],
        treatment="pacx",
        baseline="mae",
        floors=floors,
    )
