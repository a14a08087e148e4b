"""The 50 laboratory items of Symile-MIMIC, and where a source has them.

Item ids are not stable: MIMIC-IV 1.0 has Absolute Monocyte Count at 52069, where later
versions have Absolute Basophil Count. So an item is the id whose name in the source's
own d_labitems is the one meant here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pacx_jax.errors import PacxError

# (id, name, unit), in the order of the models' inputs: ascending id. Units are those of
# MIMIC-IV; several are one and the same measure.
ITEMS = (
    (50802, "Base Excess", "mEq/L"),
    (50804, "Calculated Total CO2", "mEq/L"),
    (50813, "Lactate", "mmol/L"),
    (50818, "pCO2", "mm Hg"),
    (50820, "pH", "units"),
    (50821, "pO2", "mm Hg"),
    (50861, "Alanine Aminotransferase (ALT)", "IU/L"),
    (50862, "Albumin", "g/dL"),
    (50863, "Alkaline Phosphatase", "IU/L"),
    (50868, "Anion Gap", "mEq/L"),
    (50878, "Asparate Aminotransferase (AST)", "IU/L"),
    (50882, "Bicarbonate", "mEq/L"),
    (50885, "Bilirubin, Total", "mg/dL"),
    (50893, "Calcium, Total", "mg/dL"),
    (50902, "Chloride", "mEq/L"),
    (50910, "Creatine Kinase (CK)", "IU/L"),
    (50912, "Creatinine", "mg/dL"),
    (50931, "Glucose", "mg/dL"),
    (50934, "H", "U"),
    (50947, "I", "U"),
    (50960, "Magnesium", "mg/dL"),
    (50970, "Phosphate", "mg/dL"),
    (50971, "Potassium", "mEq/L"),
    (50983, "Sodium", "mEq/L"),
    (51006, "Urea Nitrogen", "mg/dL"),
    (51133, "Absolute Lymphocyte Count", "K/uL"),
    (51146, "Basophils", "%"),
    (51200, "Eosinophils", "%"),
    (51221, "Hematocrit", "%"),
    (51222, "Hemoglobin", "g/dL"),
    (51237, "INR(PT)", ""),
    (51244, "Lymphocytes", "%"),
    (51248, "MCH", "pg"),
    (51249, "MCHC", "g/dL"),
    (51250, "MCV", "fL"),
    (51254, "Monocytes", "%"),
    (51256, "Neutrophils", "%"),
    (51265, "Platelet Count", "K/uL"),
    (51274, "PT", "sec"),
    (51275, "PTT", "sec"),
    (51277, "RDW", "%"),
    (51279, "Red Blood Cells", "m/uL"),
    (51301, "White Blood Cells", "K/uL"),
    (51678, "L", "U"),
    (52069, "Absolute Basophil Count", "K/uL"),
    (52073, "Absolute Eosinophil Count", "K/uL"),
    (52074, "Absolute Monocyte Count", "K/uL"),
    (52075, "Absolute Neutrophil Count", "K/uL"),
    (52135, "Immature Granulocytes", "%"),
    (52172, "RDW-SD", "fL"),
)
IDS = tuple(i for i, _, _ in ITEMS)

_SAME = {  # other spellings of a unit, and units that are equal for these items
    "mmol/l": "meq/l",  # all ions here have one charge
    "u/l": "iu/l",
    "mmhg": "mmhg",
    "s": "sec",
    "seconds": "sec",
    "10^3/ul": "k/ul",
    "10*3/ul": "k/ul",
    "x10^3/ul": "k/ul",
    "10^6/ul": "m/ul",
    "10*6/ul": "m/ul",
    "x10^6/ul": "m/ul",
}


def same_unit(item: int, unit: str) -> bool:
    """Whether a value in `unit` is one in the unit of item number `item` of ITEMS.

    A blank unit says nothing and passes: MIMIC leaves it out for ratios and indices.
    """
    number, _, expected = ITEMS[item]
    said, meant = _plain(unit), _plain(expected)
    if not said or not meant or said == meant:
        return True
    return number == 51249 and said == "%"  # g/dL of cells is what the % says


def _plain(unit: str) -> str:
    text = "".join(unit.lower().split())
    return _SAME.get(text, text)


def resolve(labels: Mapping[str, tuple[str, str]], path: str) -> dict[int, str]:
    """Where the source has each item: id of ITEMS -> its id there.

    The id itself where the name fits, else the one blood item of that name.

    Args:
      labels: the source's item id -> its name and fluid, as in d_labitems.
      path: of d_labitems, for messages.

    Raises:
      PacxError: an item that is there neither by id nor by name.
    """
    by_name: dict[str, list[str]] = {}
    for item, (name, fluid) in labels.items():
        if fluid.strip().lower() == "blood":
            by_name.setdefault(_name(name), []).append(item)
    found, missing = {}, []
    for number, name, _ in ITEMS:
        same = by_name.get(_name(name), [])
        if str(number) in same:
            found[number] = str(number)
        elif len(same) == 1:
            found[number] = same[0]
        else:
            there = labels.get(str(number), ("unknown",))[0]
            missing.append(f"{number} {name} (there: {there})")
    if missing:
        raise PacxError(
            f"{path}: {len(missing)} of the {len(ITEMS)} items are not in it, by id "
            f"and name or by name alone: {'; '.join(missing[:3])}; give MIMIC-IV's"
        )
    return found


def _name(name: str) -> str:
    return " ".join(name.lower().split())
