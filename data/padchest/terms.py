"""PadChest's findings as CheXpert's 14 labels, and its files known to be damaged.

The table is ours. It goes by meaning: a finding counts for a label where a report with
it states what the label names. A sign of a disease is not the disease: blunting of an
angle is no effusion, volume loss no atelectasis, a compressed vertebra no fracture, a
granuloma no lesion. Nothing is passed on from one label to another: a consolidation is
not also an opacity, as CheXpert's labeller has it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable

from data.chexpert.chexpert_dataset_builder import LABELS

_FINDINGS = {
    "Enlarged Cardiomediastinum": "mediastinal enlargement, superior mediastinal "
    "enlargement, mediastinal mass",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "increased density, infiltrates, alveolar pattern, interstitial "
    "pattern, reticular interstitial pattern, reticulonodular interstitial pattern, "
    "ground glass pattern, miliary opacities, fibrotic band, pulmonary fibrosis",
    "Lung Lesion": "nodule, multiple nodules, pulmonary mass, cavitation, lung "
    "metastasis, lymphangitis carcinomatosa, lepidic adenocarcinoma",
    "Edema": "pulmonary edema, heart insufficiency, hilar congestion, kerley lines",
    "Consolidation": "consolidation, air bronchogram",
    "Pneumonia": "pneumonia, atypical pneumonia",
    "Atelectasis": "atelectasis, laminar atelectasis, lobar atelectasis, segmental "
    "atelectasis, total atelectasis, round atelectasis, atelectasis basal",
    "Pneumothorax": "pneumothorax, hydropneumothorax",
    "Pleural Effusion": "pleural effusion, loculated pleural effusion, loculated "
    "fissural effusion, hydropneumothorax, empyema",
    "Pleural Other": "pleural thickening, apical pleural thickening, calcified pleural "
    "thickening, pleural plaques, calcified pleural plaques, pleural mass, fissure "
    "thickening, minor fissure thickening, major fissure thickening",
    "Fracture": "fracture, rib fracture, callus rib fracture, clavicle fracture, "
    "humeral fracture, vertebral fracture",
    "Support Devices": "nsg tube, endotracheal tube, tracheostomy tube, chest drain "
    "tube, ventriculoperitoneal drain tube, gastrostomy tube, nephrostomy tube, double "
    "j stent, catheter, central venous catheter, central venous catheter via jugular "
    "vein, central venous catheter via subclavian vein, central venous catheter via "
    "umbilical vein, reservoir central venous catheter, pacemaker, single chamber "
    "device, dual chamber device, dai, electrical device, artificial heart valve, "
    "artificial aortic heart valve, artificial mitral heart valve, endoprosthesis, "
    "aortic endoprosthesis, osteosynthesis material, prosthesis, humeral prosthesis",
}
_LABELS_OF: dict[str, set[str]] = {}
for _label, _names in _FINDINGS.items():
    for _name in _names.split(", "):
        _LABELS_OF.setdefault(_name, set()).add(_label)
NORMAL = "normal"
# They describe the study or its report, not the chest: with these alone the labels are
# missing.
SILENT = {"", "exclude", "suboptimal study", "unchanged"}

# Damaged in the published archives: cut off, or with empty chunks. As torchxrayvision
# (PC_Dataset) lists them; two more public loaders list most of the same.
BROKEN = frozenset(
    f"{name}.png"
    for name in """
    216840111366964012283393834152009033102258826_00-059-087
    216840111366964012339356563862009072111404053_00-043-192
    216840111366964012373310883942009117084022290_00-064-025
    216840111366964012373310883942009152114636712_00-102-045
    216840111366964012373310883942009170084120009_00-097-074
    216840111366964012487858717522009280135853083_00-075-001
    216840111366964012558082906712009327122220177_00-102-064
    216840111366964012819207061112010281134410801_00-129-131
    216840111366964012819207061112010306085429121_04-020-102
    216840111366964012819207061112010307142602253_04-014-084
    216840111366964012819207061112010315104455352_04-024-184
    216840111366964012959786098432011033083840143_00-176-115
    216840111366964012989926673512011074122523403_00-163-058
    216840111366964012989926673512011083134050913_00-168-009
    216840111366964012989926673512011151082430686_00-157-045
    216840111366964013076187734852011291090445391_00-196-188
    216840111366964013590140476722013043111952381_02-065-198
    216840111366964013590140476722013058110301622_02-056-111
    216840111366964013686042548532013208193054515_02-026-007
    216840111366964013829543166512013353113303615_02-092-190
    216840111366964013962490064942014134093945580_01-178-104
    """.split()
)


@functools.lru_cache(65536)  # most cells are written many times
def parse(cell: str) -> frozenset[str] | None:
    """The findings of a cell that Python wrote, "['normal']"; None if it is no list."""
    text = cell.strip()
    if text.lower() in ("", "nan"):
        return frozenset()
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        return None
    return frozenset(" ".join(x.lower().split()) for x in found)


@functools.lru_cache(65536)
def labels(found: frozenset[str]) -> tuple[float, ...]:
    """1 and 0 in the order of LABELS; NaN for all where the findings say nothing.

    No Finding is 1 where the report calls the film normal and nothing else counts but
    Support Devices.
    """
    if found <= SILENT:
        return (float("nan"),) * len(LABELS)
    positive = set().union(*(_LABELS_OF.get(name, set()) for name in found))
    if NORMAL in found and positive <= {"Support Devices"}:
        positive.add("No Finding")
    return tuple(float(name in positive) for name in LABELS)


def unmapped(found: Iterable[str]) -> set[str]:
    """The findings that count for no label."""
    return {*found} - _LABELS_OF.keys() - SILENT - {NORMAL}
