"""What a prepared set has beside its records, of which pacx.json is the last."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from data import croissant, published, records, shards
from pacx_jax import files
from pacx_jax.errors import one_line
from pacx_jax.input import patients
from pacx_jax.input import prepared as manifests

_STUDY = ("study_id", "view")


def finish(
    preparation: shards.Preparation,
    plan: records.Plan,
    target: pathlib.Path,
    shown: str,
    name: str,
    description: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Writes what stands beside the records, and gives the set its place.

    Args:
      preparation: all of whose shards are finished.
      plan: what they were made of.
      target: the set's place: nothing, or an empty folder.
      shown: what the summary calls it.
      name: of the builder, in data/prepare.py.
      description: the builder's.
      settings: what decides the contents, apart from the source's.

    Returns:
      The summary that `prepare` gives.
    """
    built = preparation.set
    preparation.describe()
    list_unreadable(built / "quarantine.jsonl", preparation.unreadable)
    patient_files = _write_patients(preparation, plan)
    study_files = _write_studies(preparation, plan)
    for file, data in plan.files.items():
        (built / file).write_bytes(data)
    counts = {s: sum(n) for s, n in preparation.by_split("examples").items()}
    positives = {
        split: dict(zip(plan.label_names, np.sum(found, 0).tolist(), strict=True))
        for split, found in preparation.by_split("positives").items()
    }
    fingerprint = _fingerprint(preparation.content(), plan)
    notes = [one_line(note, 3000) for note in plan.notes]
    if "patient_id" not in plan.entries:
        what = "image" if "image" in plan.entries else "record"
        notes.append(patients.NOBODY.format(what=what))
    summary = {
        "target": shown,
        "status": "prepared",
        "fingerprint": fingerprint,
        "counts": counts,
        "positives": positives,
        "unreadable": {
            split: sum(bad["split"] == split for bad in preparation.unreadable)
            for split in counts
        },
        "published": plan.published,
        "differences": published.differences(plan.published, counts, positives),
        "notes": notes,
        "report": dict(plan.report),
    }
    sums = {d["file"]: d["sha256"] for d in preparation.done.values()}
    written = sorted(p for p in built.iterdir() if p.name != manifests.FILE)
    for path in written:
        if path.name not in sums:
            files.sync(path)
            sums[path.name] = files.sha256(path)
    text = croissant.card(
        name,
        description,
        plan.simulated,
        summary,
        {path.name: (path.stat().st_size, sums[path.name]) for path in written},
        plan.entries,
    )
    written.append(built / croissant.FILE)
    files.write(written[-1], text)
    sums[croissant.FILE] = files.sha256(written[-1])
    manifest = {
        "name": name,
        "namespace": plan.namespace or patients.namespace(name),
        "settings": settings,
        "source_fingerprint": plan.fingerprint,
        "fingerprint": fingerprint,
        "splits": counts,
        "files": {path.name: path.stat().st_size for path in written},
        "sha256": dict(sorted(sums.items())),
        "patients": patient_files,
        "studies": study_files,
        "entries": plan.entries,
        "label_names": plan.label_names,
        "ecg_scale": plan.ecg_scale,
        "lead_order": plan.lead_order,
        "summary": summary,
    }
    files.write(built / manifests.FILE, json.dumps(manifest, indent=1) + "\n")
    if target.exists():
        target.rmdir()  # it is empty
    built.rename(target)
    files.sync(target.resolve().parent)
    return summary


def _write_patients(
    preparation: shards.Preparation, plan: records.Plan
) -> dict[str, str]:
    """split -> the file of its examples' patients; {} where the data name none.

    Training asks for them, and would else read all records.
    """
    if "patient_id" not in plan.entries:
        return {}
    names = {}
    for split, found in preparation.by_split("patients").items():
        names[split] = f"patients-{split}.json"
        text = json.dumps(list(itertools.chain.from_iterable(found)))
        (preparation.set / names[split]).write_text(text)
    return names


def _write_studies(
    preparation: shards.Preparation, plan: records.Plan
) -> dict[str, str]:
    """split -> the file of its images' studies and views; {} where there are none."""
    if "study_id" not in plan.entries:
        return {}
    names = {}
    for split, found in preparation.by_split("studies").items():
        names[split] = f"studies-{split}.json"
        rows = list(itertools.chain.from_iterable(found))
        text = json.dumps({k: [r[i] for r in rows] for i, k in enumerate(_STUDY)})
        (preparation.set / names[split]).write_text(text)
    return names


def list_unreadable(path: pathlib.Path, unreadable: list[dict]) -> None:
    path.write_text("".join(json.dumps(bad) + "\n" for bad in unreadable))


def _fingerprint(content: str, plan: records.Plan) -> str:
    parts = (content, plan.label_names, plan.ecg_scale, plan.lead_order)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
