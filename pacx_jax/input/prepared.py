"""pacx.json, by which a prepared data set says what it holds, and TFDS's own files."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from pacx_jax import files
from pacx_jax.errors import PacxError

FILE = "pacx.json"
_FIELDS = ("splits", "files", "sha256", "patients", "entries", "label_names")
_FIELDS += ("fingerprint", "namespace", "settings", "source_fingerprint", "summary")
_FEATURES = "tensorflow_datasets.core.features."


def read(folder: pathlib.Path, sizes: bool = True) -> dict[str, Any]:
    """What data/prepare.py says of its target.

    PacxError if it is none, and with `sizes` if a file of it is missing or cut off.
    """
    try:
        manifest = files.read_json(folder / FILE)
    except (OSError, ValueError):
        raise PacxError(
            f"{folder}: not a prepared data set (no readable {FILE}); make one by "
            "data/prepare.py, or give data.source=folder"
        ) from None
    if set(_FIELDS) - set(manifest):
        raise PacxError(
            f"{folder}: prepared by another version of data/prepare.py; delete it and "
            "prepare it again"
        )
    _check_fields(folder, manifest)
    for name, size in manifest["files"].items() if sizes else ():
        file = folder / name
        # os.path's, which is False also of names that no file can have.
        if not os.path.isfile(file) or file.stat().st_size != size:
            raise PacxError(
                f"{file}: missing or cut off ({size} bytes were written); delete "
                f"{folder} and prepare it again"
            )
    return manifest


def check_features(folder: pathlib.Path) -> None:
    """ValueError for features that TFDS would import by name from elsewhere."""
    todo = [files.read_json(folder / "features.json")]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            name = value.get("pythonClassName", _FEATURES)
            if not isinstance(name, str) or not name.startswith(_FEATURES):
                raise ValueError(f"features.json names {name!r}")
        todo += value.values() if isinstance(value, dict) else []
        todo += value if isinstance(value, list) else []


def _check_fields(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """PacxError for a manifest whose fields are not of their kinds."""
    texts = [*_texts(manifest["entries"]), *_texts(manifest["label_names"])]
    texts += [manifest["fingerprint"]]
    texts += [manifest["namespace"]]
    texts += [manifest.get(k) or "" for k in ("name", "lead_order")]
    scale = manifest.get("ecg_scale", 1.0)
    counts = [manifest["splits"], manifest["files"]]
    good = all(isinstance(text, str) for text in texts)
    good = good and isinstance(scale, (int, float)) and 0 < scale < 1e6
    good = good and all(
        isinstance(count, dict)
        and all(isinstance(n, int) and 0 <= n < 2**62 for n in count.values())
        for count in counts
    )
    # Nothing outside of the folder is looked at.
    files = [manifest[k] for k in ("sha256", "patients", "settings", "summary")]
    files.append(manifest.get("studies", {}))  # not in older sets
    good = good and all(isinstance(found, dict) for found in files)
    good = good and all(
        isinstance(f, str) and pathlib.PurePath(f).name == f
        for f in (
            *manifest["files"],
            *manifest["patients"].values(),
            *manifest.get("studies", {}).values(),
        )
    )
    if not good:
        raise PacxError(
            f"{folder / FILE}: damaged (a field of a wrong kind); delete {folder} "
            "and prepare it again"
        )


def _texts(value: Any) -> list:
    return value if isinstance(value, list) else [None]
