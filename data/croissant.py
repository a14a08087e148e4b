"""croissant.json: a prepared set's card, as Croissant 1.0 JSON-LD (mlcommons.org).

It says what the set was made from and on whose terms, and lists its files with their
sha256, its splits, its entries, and each label's positives. The records' format,
ArrayRecord, is none that Croissant reads: training reads pacx.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FILE = "croissant.json"
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


class Terms(NamedTuple):
    """Where a data set is from, and on what terms.

    Attributes:
      title: what people call it.
      url: its page; "" for data of the user's own.
      license: its terms as far as we know them; they change, read them there.
      cite: the paper to cite.
    """

    title: str
    url: str
    license: str
    cite: str = ""


_PHYSIONET = "PhysioNet Credentialed Health Data License and data use agreement"
_KAGGLE = "As its Kaggle page says; put together from other sets, whose terms hold too"
_OWN = "Not stated: the terms of whoever made the data"
_NET, _CHALLENGE = "https://physionet.org/content/", "https://www.kaggle.com/c/"
_SETS = "https://www.kaggle.com/datasets/"
# The rows of data/README.md's table.
TERMS = {
    "chexpert": Terms(
        "CheXpert",
        "https://stanfordaimi.azurewebsites.net/datasets/"
        "8cbd9ed4-2eb9-4565-affc-111cf4f7ebe2",
        "Stanford University Dataset Research Use Agreement",
        "Irvin et al. 2019, arXiv 1901.07031",
    ),
    "symile_mimic": Terms(
        "Symile-MIMIC",
        f"{_NET}symile-mimic/1.0.0/",
        _PHYSIONET,
        "Saporta et al. 2024, arXiv 2411.01053",
    ),
    "tb": Terms(
        "Shenzhen tuberculosis set",
        "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html",
        "Free, with citation",
        "Jaeger et al. 2014, Two public chest X-ray datasets for computer-aided "
        "screening of pulmonary diseases",
    ),
    "vindr_cxr": Terms(
        "VinDr-CXR",
        f"{_NET}vindr-cxr/1.0.0/",
        _PHYSIONET,
        "Nguyen et al. 2022, arXiv 2012.15029",
    ),
    "nih14": Terms(
        "NIH ChestX-ray14",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "Free, with citation and acknowledgement of the NIH Clinical Center",
        "Wang et al. 2017, arXiv 1705.02315",
    ),
    "chestx6": Terms(
        "Chest X-ray 6 classes",
        f"{_SETS}mohamedasak/chest-x-ray-6-classes-dataset",
        _KAGGLE,
    ),
    "chexchonet": Terms(
        "CheXchoNet",
        f"{_NET}chexchonet/1.0.0/",
        "PhysioNet Restricted Health Data License and data use agreement",
    ),
    "medmod": Terms("MedMod", "https://github.com/nyuad-cai/MedMod", _PHYSIONET),
    "covid_qu_ex": Terms("COVID-QU-Ex", f"{_SETS}anasmohammedtahir/covidqu", _KAGGLE),
    "covidx": Terms("COVIDx CXR-4", f"{_SETS}andyczhao/covidx-cxr2", _KAGGLE),
    "kermany": Terms(
        "Pneumonia set of Kermany et al.",
        "https://data.mendeley.com/datasets/rscbjbr9sj",
        "https://creativecommons.org/licenses/by/4.0/",
        "Kermany et al. 2018, Identifying medical diagnoses and treatable diseases by "
        "image-based deep learning",
    ),
    "qata_cov19": Terms(
        "QaTa-COV19", f"{_SETS}aysendegerli/qatacov19-dataset", _KAGGLE
    ),
    "cxlseg": Terms("CXLSeg", f"{_NET}chest-x-ray-segmentation/1.0.0/", _PHYSIONET),
    "mimic_cxr": Terms(
        "MIMIC-CXR-JPG",
        f"{_NET}mimic-cxr-jpg/2.1.0/",
        _PHYSIONET,
        "Johnson et al. 2019, arXiv 1901.07042",
    ),
    "padchest": Terms(
        "PadChest",
        "https://bimcv.cipf.es/bimcv-projects/padchest/",
        "PadChest Dataset Research Use Agreement",
        "Bustos et al. 2020, arXiv 1901.07441",
    ),
    "openi": Terms(
        "Open-i (NLMCXR)",
        "https://openi.nlm.nih.gov/faq",
        "https://creativecommons.org/licenses/by-nc-nd/4.0/",
    ),
    "rsna_pneumonia": Terms(
        "RSNA Pneumonia",
        f"{_CHALLENGE}rsna-pneumonia-detection-challenge",
        "Kaggle's rules of the competition and RSNA's terms of use",
        "Shih et al. 2019, Augmenting the NIH Chest Radiograph Dataset with Expert "
        "Annotations of Possible Pneumonia",
    ),
    "siim_acr": Terms(
        "SIIM-ACR Pneumothorax Segmentation",
        f"{_CHALLENGE}siim-acr-pneumothorax-segmentation",
        "Kaggle's rules of the competition",
    ),
    "tbx11k": Terms(
        "TBX11K",
        "https://mmcheng.net/tb/",
        "As its page says",
        "Liu et al. 2020, Rethinking Computer-Aided Tuberculosis Diagnosis",
    ),
    "mimic_labs": Terms("MIMIC-IV, laboratory values", f"{_NET}mimiciv/", _PHYSIONET),
    "mimic_vitals": Terms("MIMIC-IV-ED", f"{_NET}mimic-iv-ed/", _PHYSIONET),
    "folder": Terms("A folder of images", "", _OWN),
    "ecg_array": Terms("ECGs in one array", "", _OWN),
    "wfdb": Terms("A tree of WFDB records", "", _OWN),
}
SIMULATED = Terms(
    "The simulated cohort of pacx_jax",
    "",
    "https://www.apache.org/licenses/LICENSE-2.0",
)


def card(
    name: str,
    description: str,
    simulated: bool,
    summary: Mapping[str, Any],
    files: Mapping[str, tuple[int, str]],
    entries: Sequence[str],
) -> str:
    """The text of croissant.json.

    Args:
      name: of the builder.
      description: the builder's.
      simulated: whether the source is the simulated cohort.
      summary: of data/finish.py: counts and positives.
      files: name -> bytes and sha256 of the set's other files.
      entries: of every example.
    """
    terms = SIMULATED if simulated else TERMS[name]
    counts = ", ".join(f"{split} {n}" for split, n in summary["counts"].items())
    about = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"{name}-simulated" if simulated else name,
        "alternateName": terms.title,
        "description": f"{'SIMULATED, in the layout of: ' * simulated}{description} "
        f"Prepared by pacx_jax as ArrayRecord: {counts} examples of the entries "
        f"{', '.join(entries)}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": terms.license,
        "version": "1.0.0",
        "isLiveDataset": False,
        "distribution": [_file(n, *about) for n, about in sorted(files.items())],
        "recordSet": [_splits(summary["counts"]), *_labels(summary["positives"])],
    }
    about |= {"url": terms.url} if terms.url else {}
    about |= {"citeAs": terms.cite} if terms.cite else {}
    return json.dumps(about, indent=1) + "\n"


def _file(name: str, size: int, sha256: str) -> dict[str, Any]:
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _splits(counts: Mapping[str, int]) -> dict[str, Any]:
    rows = [{"splits/name": s, "splits/examples": n} for s, n in counts.items()]
    return _records("splits", {"name": "sc:Text", "examples": "sc:Integer"}, rows)


def _labels(positives: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """One set of records: a label, a split, and how many are positive there."""
    rows = [
        {"labels/label": label, "labels/split": split, "labels/positives": n}
        for split, found in positives.items()
        for label, n in found.items()
    ]
    kinds = {"label": "sc:Text", "split": "sc:Text", "positives": "sc:Integer"}
    return [_records("labels", kinds, rows)] if rows else []


def _records(name: str, kinds: Mapping[str, str], rows: list[dict]) -> dict[str, Any]:
    fields = [
        {"@type": "cr:Field", "@id": f"{name}/{k}", "name": k, "dataType": kind}
        for k, kind in kinds.items()
    ]
    about = {"@type": "cr:RecordSet", "@id": name, "name": name}
    return about | {"field": fields, "data": rows}
