"""MedMod (Elsharief et al. 2025): ICU stays of MIMIC-IV with one chest X-ray each.

Layouts, that of MedMod's own code over MIMIC-IV, and that of the authors of PaCX-MAE:

  all_stays.csv, phenotype_labels.csv     written by MedMod's extract_subjects_iv.py
  [testset_iv.csv, valset_iv.csv]         MedMod's lists of patients
  mimic-cxr-2.0.0-metadata.csv[.gz]       MIMIC-CXR-JPG, here or in --images
  files/p10/p10000032/s50414267/DICOM.jpg

  {train,val,test}/{train,val,test}.csv   stays that are linked and split already
  {train,val,test}/DICOM.jpg

With --frontal, laterals are no X-rays of a stay: the view is that of MIMIC-CXR-JPG's
metadata, and what it does not know is left out. The reference takes any view.

Two tasks: `phenotypes` (25) and `mortality` (3). MedMod's code sets `mortality` and
`mortality_inhospital` alike.

Symile-MIMIC, on which encoders are distilled, is cut from the same archive: --symile is
its folder. `strict` leaves out all of its patients; `reference` the admissions of its
training split alone, so that patients and their other admissions stay (9,098 images,
as the paper has them).

`strict` keeps splits that are there, and lists of patients; else it draws patients,
70/10/20%. `reference` draws stays. Draws are stratified by the rarest phenotype.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from data import listings, published, records, splits
from data.medmod import stays
from pacx_jax.errors import PacxError

STRATUM = "Other upper respiratory disease"
PHENOTYPES = (
    "Acute and unspecified renal failure",
    "Acute cerebrovascular disease",
    "Acute myocardial infarction",
    "Cardiac dysrhythmias",
    "Chronic kidney disease",
    "Chronic obstructive pulmonary disease and bronchiectasis",
    "Complications of surgical procedures or medical care",
    "Conduction disorders",
    "Congestive heart failure; nonhypertensive",
    "Coronary atherosclerosis and other heart disease",
    "Diabetes mellitus with complications",
    "Diabetes mellitus without complication",
    "Disorders of lipid metabolism",
    "Essential hypertension",
    "Fluid and electrolyte disorders",
    "Gastrointestinal hemorrhage",
    "Hypertension with complications and secondary hypertension",
    "Other liver diseases",
    "Other lower respiratory disease",
    STRATUM,
    "Pleurisy; pneumothorax; pulmonary collapse",
    "Pneumonia (except that caused by tuberculosis or sexually transmitted disease)",
    "Respiratory failure; insufficiency; arrest (adult)",
    "Septicemia (except in labor)",
    "Shock",
)
MORTALITY = ("mortality_inunit", "mortality", "mortality_inhospital")
_DRAWN = splits.Policy(test=0.2, val=0.125, stratified=True)  # 70, 10 and 20%
_LISTED = splits.Policy(keep=splits.NAMES)
_COUNTS = {"reference": {"train+val+test": {"images": 9_098}}}
_MARKERS = ("train/train.csv", stays.STAYS)
TASKS = {
    task: published.Facts(
        "MedMod",
        _MARKERS,
        labels,
        dataclasses.replace(_DRAWN, by_patient=True),
        _DRAWN,
        _COUNTS,
    )
    for task, labels in (("phenotypes", PHENOTYPES), ("mortality", MORTALITY))
}


class Builder(records.RecordBuilder, skip_registration=True):
    """MedMod as ArrayRecord."""

    name = "medmod"
    description = "MedMod: chest X-rays of ICU stays with phenotypes or mortality."


def make_plan(source: pathlib.Path, options: Any) -> records.Plan:
    """Reads the tables, links the X-rays; PacxError when they are not as described."""
    if not options.symile:
        raise PacxError(
            "medmod: give --symile=DIR, the folder of Symile-MIMIC with its CSVs, so "
            "that nobody is probed on whom encoders were trained"
        )
    facts = TASKS[options.task or "phenotypes"]
    root = published.find_root(source, facts)
    images = pathlib.Path(options.images or root)
    split = (root / _MARKERS[0]).is_file()
    if split:
        strict = dataclasses.replace(_LISTED, by_patient=True)
        facts = dataclasses.replace(facts, strict=strict, reference=_LISTED)
        found = list(stays.read_split(root, facts.labels, STRATUM))
    else:
        found = list(stays.read_release(root, facts.labels, STRATUM))
        if any(stay.split for stay in found):
            strict = splits.Policy(keep=splits.NAMES, by_patient=True)
            facts = dataclasses.replace(facts, strict=strict)
    symile = stays.seen(found, pathlib.Path(options.symile), options.splits)
    kept = [stay for stay, known in zip(found, symile, strict=True) if not known]
    what = "patients" if options.splits == "strict" else "training admissions"
    notes = [f"{sum(symile)} stays are of Symile-MIMIC's {what} and left out"]
    if not split or options.frontal:
        if split:
            linked = stays.frontal_of(kept, images, root)
        else:
            linked = stays.link(kept, images, root, options.frontal)
        what = "frontal X-ray" if options.frontal else "X-ray"
        notes.append(
            f"{len(kept) - len(linked)} of the other {len(kept)} stays have no {what} "
            "and are left out"
        )
        kept = linked
    if not kept:
        raise PacxError(f"{root}: of {len(found)} stays none is left: {notes[0]}")

    def read(root: pathlib.Path, files: listings.Files) -> Iterator[listings.Row]:
        del root, files
        for stay in kept:
            yield listings.Row(
                stay.origin,
                stay.film,
                stay.labels,
                stay.patient,
                stay.split,
                stay.stratum,
                stay.split,
                views=stay.views,
            )

    plan = published.make_plan(source, options, facts, read)
    return dataclasses.replace(plan, notes=(*notes, *plan.notes))
