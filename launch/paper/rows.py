"""The rows of the paper's tables, the encoders of its columns, and what stands in.

A row's data lie prepared in DATA/FOLDER. On the simulated cohort some rows are filled
by its sets, as far as these have labels of the same kind; the others say how to get
their data.
"""

from __future__ import annotations

import dataclasses
import pathlib

from data import croissant
from launch.studies import Arm, Probe, Study
from pacx_jax.input import patients

ENCODERS = ("imagenet", "mae", "pacx")  # the columns of tables 1 and 2
ABLATIONS = ("ecg_only", "labs_only", "contrastive_only", "regression_only", "pacx")
NAMES = {
    "imagenet": "ImageNet",
    "mae": "MAE",
    "pacx": "PaCX",
    "ecg_only": "ECG",
    "labs_only": "Lab",
    "contrastive_only": "Cont.",
    "regression_only": "Reg.",
}
FRACTIONS = (0.01, 0.1, 1.0)  # of figure 3
TABLE3 = ("CheXchoNet", "MedMod", "VinDr-CXR")
FIGURE3 = ("NIH-14", "CheXchoNet", "VinDr-CXR", "MedMod")


@dataclasses.dataclass(frozen=True)
class Row:
    """A data set of table 1.

    Attributes:
      name: as the paper has it.
      folder: of the prepared set, within --data.
      builder: of data/prepare.py.
      kind: "multilabel", "multiclass" or "masks".
      labels: names of those that count; () = all of the set.
      flags: of data/prepare.py, besides the folders.
      stand_in: what the simulated set is, in words; "" for the paper's own.
    """

    name: str
    folder: str
    builder: str
    kind: str = "multilabel"
    labels: tuple[str, ...] = ()
    flags: str = ""
    stand_in: str = ""

    @property
    def namespace(self) -> str:
        """Whose patients its ids are, where the set does not say it itself."""
        return patients.SIMULATED if self.stand_in else ""

    @property
    def metrics(self) -> tuple[str, str]:
        """The two numbers of a cell."""
        return ("iou", "dice") if self.kind == "masks" else ("auroc", "f1")

    def missing(self, data: str) -> str:
        """How to get a set that is not there, in one line."""
        if self.stand_in:
            return f"{data}/{self.folder} is not there: {self.flags}"
        url = croissant.TERMS[self.builder].url
        flags = f" {self.flags}" if self.flags else ""
        return (
            f"{data}/{self.folder} is not there: get it from {url}, then python "
            f"data/prepare.py {self.builder} --source=DIR "
            f"--target={data}/{self.folder}{flags}"
        )


# The paper takes any view of a stay, and which view was taken tells of the patient.
FRONTAL = Row(
    "MedMod, frontal alone",
    "medmod_frontal",
    "medmod",
    flags="--symile=DIR --images=DIR --frontal",
)
PAPER = (
    Row("TB", "tb", "tb"),
    Row("CheXchoNet", "chexchonet", "chexchonet"),
    Row("ChestX6", "chestx6", "chestx6", "multiclass"),
    Row("VinDr-CXR", "vindr_cxr", "vindr_cxr"),
    Row("NIH-14", "nih14", "nih14"),
    Row("MedMod", "medmod", "medmod", flags="--symile=DIR --images=DIR"),
    FRONTAL,
    Row("COVID-QU-Ex", "covid_qu_ex", "covid_qu_ex", "masks"),
    Row("QaTa-COV19", "qata_cov19", "qata_cov19", "masks"),
    Row("CXL-Seg", "cxlseg", "cxlseg", "masks"),
)
_DEMO = "bash launch/demo.sh makes it"
_MASKED = "the docstring of configs/segment.py has the two commands"
_STAND_IN = {
    "CheXchoNet": ("probe", ("slvh_dlv",), "structural heart disease", _DEMO),
    "VinDr-CXR": (
        "probe",
        ("consolidation", "nodule", "hyperinflation"),
        "what radiologists see",
        _DEMO,
    ),
    "NIH-14": ("probe", (), "all seven labels", _DEMO),
    "MedMod": (
        "probe",
        ("heart_failure", "renal_failure", "anaemia"),
        "diagnoses beyond the X-ray",
        _DEMO,
    ),
    "COVID-QU-Ex": ("masked", (), "lungs", _MASKED),
}


def of(cohort: bool) -> tuple[Row, ...]:
    """Table 1's rows; on the cohort those that it can fill are its own."""
    if not cohort:
        return PAPER
    found = []
    for row in PAPER:
        if row.name in _STAND_IN:
            folder, labels, what, how = _STAND_IN[row.name]
            row = dataclasses.replace(
                row, folder=folder, labels=labels, stand_in=what, flags=how
            )
        found.append(row)
    return tuple(found)


def study(
    data: str, cohort: bool, given: dict[str, str]
) -> tuple[Study | None, list[str]]:
    """The trainings behind the tables, and what cannot be trained, in words.

    They are the encoders, the ablations, and the decoders of masks.

    Args:
      given: arm -> folder of an encoder that is there, as of `Arm.given`; it is not
        trained.

    Returns:
      (None if nothing is to be trained, lines).
    """
    preset = ":runlocal" if cohort else ""
    arms = {name: Arm("", given=folder) for name, folder in given.items()}
    notes: list[str] = []

    def add(name, recipe, folder, starts, fields=(), **about):
        lacks = [start for start in starts.values() if start not in arms]
        if name in given:
            return
        if not (pathlib.Path(data) / folder).is_dir():
            lacks.append(f"{data}/{folder}")
        if lacks:
            notes.append(
                f"{name} is not trained, for want of {' and '.join(lacks)}; give its "
                f"data, or an encoder by --encoder={name}=DIR"
            )
            return
        fields = {"data.path": f"{data}/{folder}"} | dict(fields)
        arms[name] = Arm(f"configs/{recipe}.py{preset}", fields, starts, **about)

    add("mae", "mae_vitb16", "chexpert", {})
    add("ecg", "ecg_net1d", "ecg", {}, once=True, probed=False)
    add("labs", "labs_dae", "symile_mimic", {}, once=True, probed=False)
    starts = {"model_init": "mae"}
    starts |= {f"modalities.{m}.init": m for m in ("ecg", "labs")}
    off = {
        m: {f"modalities.{m}.{k}_weight": 0.0 for k in ("clip", "regression")}
        for m in ("ecg", "labs")
    }
    for name, fields in (
        ("pacx", {}),
        ("ecg_only", off["labs"]),
        ("labs_only", off["ecg"]),
        ("contrastive_only", {"loss.regression_weight": 0.0}),
        ("regression_only", {"loss.clip_weight": 0.0}),
    ):
        add(name, "distill_vitb16", "symile_mimic", starts, fields)
    for row in of(cohort):
        if row.kind == "masks" and (pathlib.Path(data) / row.folder).is_dir():
            for encoder in ENCODERS:
                if encoder in arms:
                    start = {"model_init": encoder}
                    add(decoder(row, encoder), "segment", row.folder, start)
    if not any(arm.recipe for arm in arms.values()):
        return None, notes
    first = next(iter(arms))
    return Study(arms, Probe(data, {}), [], first, first, ()), notes


def decoder(row: Row, encoder: str) -> str:
    """The arm that trains the decoder of a row on an encoder."""
    return f"{row.folder}_{encoder}"
