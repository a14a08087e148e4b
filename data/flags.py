"""The flags of data/prepare.py, and the data sets that it knows."""

from __future__ import annotations

import argparse

from data import splits
from pacx_jax import cli
from pacx_jax.errors import PacxError

NAMES = (
    "chexpert",
    "symile_mimic",
    "tb",
    "vindr_cxr",
    "nih14",
    "chestx6",
    "chexchonet",
    "medmod",
    "covid_qu_ex",
    "covidx",
    "kermany",
    "qata_cov19",
    "cxlseg",
    "mimic_cxr",
    "padchest",
    "openi",
    "rsna_pneumonia",
    "siim_acr",
    "tbx11k",
    "folder",
    "ecg_array",
    "mimic_labs",
    "mimic_vitals",
    "wfdb",
)
_TABLES = ("folder", "ecg_array", "wfdb")  # with a CSV of the user's
_MIMIC = ("mimic_labs", "mimic_vitals")
_IMAGES = tuple(n for n in NAMES if n not in ("ecg_array", "wfdb", *_MIMIC))
_LISTED = tuple(n for n in _IMAGES if n != "symile_mimic")
# Flags that name what is read, which may lie in a bucket.
FOLDERS = ("source", "csv", "images", "reports", "symile", "vitals", "percentiles")
# The data sets for which a flag means something; those not named here it does for all.
APPLIES = {
    "size": _IMAGES,
    "store": _IMAGES,
    "splits": tuple(n for n in _IMAGES if n != "folder"),  # for some both are one
    "allow_missing": _LISTED,
    "task": ("chexchonet", "medmod", "mimic_cxr"),
    "images": ("medmod",),
    "reports": ("mimic_cxr", "openi"),
    "symile": ("medmod",),
    "frontal": ("medmod",),
    "lead_order": ("ecg_array",),
    "masks": ("folder",),
    "windows": ("wfdb",),
    "split_seed": _MIMIC,
    "units": ("mimic_labs",),
    "vitals": ("symile_mimic",),
    "percentiles": (*_MIMIC, "symile_mimic"),
    "val_fraction": (*_TABLES, *_MIMIC),
    "test_fraction": (*_TABLES, *_MIMIC),
    **dict.fromkeys(("csv", "label_columns", "label_separator"), _TABLES),
    **dict.fromkeys(("patient_column", "path_column", "split_column"), _TABLES),
}


def parse(argv: list[str] | None, description: str) -> argparse.Namespace:
    """The command's flags; those of folders stand under their config names."""
    parser = cli.Parser(
        prog="data/prepare.py", description=description, remote=("target", *FOLDERS)
    )
    add = parser.add_argument
    add("name", nargs="?", choices=NAMES)
    add("--source", help="folder of the data set as published")
    add("--target", required=True, help="folder to write; it must not exist yet")
    add("--check", action="store_true", help="verify the target, which is finished")
    add("--size", type=int, default=256, help="shorter side in pixels; 0 = as it is")
    add(
        "--store",
        choices=("encoded", "raw"),
        default="encoded",
        help="images as JPEG and PNG, or as pixels: larger, faster to read",
    )
    add("--workers", type=int, default=0, help="threads; 0 = one for each core")
    add(
        "--max_bad_share",
        type=float,
        default=0.01,
        help="unreadable samples above this share of a split stop it",
    )
    add("--splits", choices=splits.POLICIES, default="strict")
    add("--allow_missing", action="store_true", help="leave out listed, absent images")
    add("--task", default="", help="of chexchonet, medmod, mimic_cxr: data/README.md")
    add("--images", default="", help="medmod: MIMIC-CXR-JPG, if not in --source")
    add("--reports", default="", help="mimic_cxr, openi: if not in --source")
    add("--symile", default="", help="medmod: Symile-MIMIC, which it must not share")
    add("--frontal", action="store_true", help="medmod: frontal X-rays alone")
    add("--lead_order", choices=("standard", "mimic"), default="standard")
    add("--csv", default="", help="folder, ecg_array, wfdb: CSV of labels, patients")
    add("--label_columns", default="", help="comma-separated; default: all")
    add("--label_separator", default="|")
    add("--patient_column", default="", help="'-' = split by file")
    add("--path_column", default="")
    add("--split_column", default="", help="'-' = do not use the CSV's split")
    add("--masks", default="", help="folder: its folder of masks, to be stored too")
    add("--val_fraction", type=float, default=0.1)
    add("--test_fraction", type=float, default=0.0)
    add("--windows", choices=("first", "all"), default="first", help="wfdb: 10 s each")
    add("--split_seed", type=int, default=0, help="mimic_*: draws patients anew")
    add("--units", choices=("match", "any"), default="match", help="mimic_labs")
    add("--vitals", default="", help="symile_mimic: MIMIC-IV-ED, if not in --source")
    add("--percentiles", default="", help="mimic_*: those of this set, not train's; "
        "symile_mimic: of the vital signs")  # fmt: skip
    options = parser.parse_args(argv)
    if not options.check and not options.name:
        parser.error(f"NAME is missing: one of {', '.join(NAMES)}")
    if not options.check and options.source is None:
        parser.error("--source is missing")
    options.given = {
        flag for flag in APPLIES if getattr(options, flag) != parser.get_default(flag)
    }
    return options


def check(options: argparse.Namespace) -> None:
    """PacxError for a flag that would be ignored."""
    for flag in sorted(options.given):
        if options.name and options.name not in APPLIES[flag]:
            raise PacxError(
                f"--{flag} means nothing for {options.name}, but for "
                f"{', '.join(APPLIES[flag])}: leave it out"
            )
