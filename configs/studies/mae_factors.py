"""What holds the demonstration's MAE below raw pixels? One factor at a time.

  bash launch/demo.sh                     # makes the data
  python launch/study.py configs/studies/mae_factors.py --split=val --seeds=3 \\
      --data=runs/demo/data/prepared --target=runs/mae_factors --jobs=2

Settings are looked for on validation patients. What came out stands in docs/demo.md.
"""

from configs.studies import pacx_cohort
from launch.studies import FLOORS, Arm, Probe, Study

FACTORS = {
    "decoder": (
        "Decoder of 4 x 128",
        {
            "model.decoder.depth": 4,
            "model.decoder.width": 128,
            "model.decoder.num_heads": 4,
        },
        "In place of 2 x 64.",
    ),
    "uncropped": (
        "No crops",
        {"data.crop_scale": (1.0, 1.0)},
        "In place of crops of 70 to 100%.",
    ),
    "steps": (
        "Twice the steps",
        {"total_steps": 6000, "optim.warmup_steps": 240},
        "In place of 3,000.",
    ),
    "norm_pix": (
        "Normalised patches",
        {"loss.norm_pix_loss": True},
        "Each patch is predicted against its own mean and deviation.",
    ),
}


def get_study(data: str) -> Study:
    """The study on the demo's prepared sets, which lie in the folder `data`."""
    base = {"data.path": f"{data}/chexpert", "total_steps": 3000}
    arms = {"mae": Arm(pacx_cohort.MAE, base, name="MAE", role="compared")}
    for arm, (name, fields, about) in FACTORS.items():
        arms[arm] = Arm(pacx_cohort.MAE, base | fields, name=name, about=about)
    about = "The mean of the patches in place of the CLS token."
    for arm, name in (("mae", "Mean"), ("steps", "Twice the steps, mean")):
        mean = Arm("", given=f"{{{arm}}}", pooling="mean", name=name, about=about)
        arms[f"{arm}_mean"] = mean
    tried = [arm for arm in arms if arm != "mae"]
    return Study(
        arms,
        Probe(
            f"{data}/probe",
            pacx_cohort.GROUPS,
            table=f"{data}/../raw/paired/probe/labels.csv",
            namespace="simulated",
        ),
        pairs=[(a, b) for a in tried for b in ("mae", "pixels")] + [("mae", "pixels")],
        treatment="decoder",
        baseline="mae",
        floors=FLOORS,
    )
