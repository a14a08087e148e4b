"""Random-access sources of raw examples: prepared ArrayRecord, or a folder of images.

A source knows its length, gives example i as a dict of raw entries, and names it for
messages. Entries, each only where the data set has it:

  image       encoded bytes of a JPEG, PNG or DICOM, or a uint8 array
  mask        encoded bytes of a PNG of the image's size, 255 inside and 0 outside
  labels      float32 (c,), NaN = missing, -1 = uncertain
  patient_id  str
  path        str, relative to the data set's root
  study_id    str; view, view_origin  str, see `views`; of studies with several images
  findings    str, a section of the study's report, "" where it has none;  impression
  ecg         float32 (5000, 12), mV or scaled to [-1, 1]; lead_order says the order
  lead_order  "standard" or "mimic"
  labs        float32 (50,), percentiles;  labs_mask  float32 (50,), 1 = observed
  vitals      float32 (7,), likewise, of `modalities.vitals.SIGNS`;  vitals_mask
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import (
    folders,
    in_memory,
    mixture,
    patients,
    prepared,
    records,
    studies,
    subsets,
    views,
)
from pacx_jax.stores import staging, urls
from pacx_jax.stores.failures import Missing

SPLITS = ("train", "val", "test")
_READ_AT_ONCE = 256  # records
_SCALED = "ecg"  # the entry that is stored as integers


class NoSplit(PacxError):
    """The data have no such split, or no example of it."""


class Source(Protocol):
    """What the pipeline reads from.

    Attributes:
      label_names: names of the c labels, () without any.
      fingerprint: hexadecimal sha256, another one when the data are others.
      split: the split's name.
      entries: names of the entries that every example has.
      namespace: whose ids `patient_id` are (see pacx_jax/input/patients.py).
      notes: lines to tell at the start: what was taken for what.
    """

    label_names: tuple[str, ...]
    fingerprint: str
    split: str
    entries: tuple[str, ...]
    namespace: str
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def name(self, i: int) -> str: ...

    def patients(self) -> list[str] | None: ...

    def studies(self) -> studies.Index | None: ...  # a source of images alone

    def paths(self) -> list[str]: ...  # likewise

    def labels(self) -> np.ndarray: ...


GROUPS = ("image", "study")


def open_source(data: Any, split: str) -> Source:
    """Opens one split of the data that `config.data` describes.

    Args:
      data: anything with attributes. `source`: "prepared" (a folder that
        data/prepare.py wrote), "folder" (a tree of JPEG, PNG and DICOM files), or
        "arrays" (in_memory.py, by `pacx_jax.train`);
        `path`, which may be remote, and `stage`, the folder of its local copy.
        `limit`: at most so many examples, drawn once and for all; 0 = all.
        `namespace`: whose ids the patients' are; "" = the prepared data set's.
        `group`: an example is an "image" or a "study" (studies.Studies). For
        "folder" also the fields of `folders.FolderSpec`.
      split: "train", "val" or "test", or another one of a prepared set.

    Every set of a mixture must have the split that is trained on. A set that lacks
    another split is left out of that split, and a note says so.

    Raises:
      NoSplit: no set has the split.
      PacxError: one line for whatever is missing or wrong.
    """
    kind = getattr(data, "source", "")
    if parts := mixture.parts(data):
        if all(part.source == "prepared" for part in parts):
            _refuse_folder_fields(data)
        staging.check_room([part.path for part in parts], _stage(data))
        names, opened = mixture.names(mixture.paths(data.path)), {}
        trained = split == getattr(data, "train_split", "train")  # others are read once
        lacks = []
        for name, part in zip(names, parts, strict=True):
            try:
                opened[name] = open_source(part, split)
            except NoSplit:
                lacks.append(name)
                if trained or len(lacks) == len(parts):
                    raise
        wanted = getattr(data, "weights", "size") if trained else "size"
        source: Source = mixture.Mixture(opened.values(), tuple(opened), wanted)
        if lacks:
            source.notes += (f"{split}: NOT of {', '.join(lacks)}, without that split",)
        return _limited(source, data)
    if (weights := getattr(data, "weights", "size")) not in ("", "size"):
        raise PacxError(
            f"data.weights {weights!r}: data.path names one set; leave it out"
        )
    if kind == "prepared":
        _refuse_folder_fields(data)
        source = PreparedSource(data.path, split, _stage(data))
    elif kind == "folder":
        if split not in SPLITS:
            raise NoSplit(f"split {split!r}: a folder has {', '.join(SPLITS)}")
        source = FolderSource(folders.FolderSpec.from_config(data), split, _stage(data))
    elif kind == "arrays":
        source = in_memory.ArraySource(data, split)
        if not len(source):
            raise NoSplit(f"{data.path}: the {split} split is empty; give more images")
    else:
        raise PacxError(f"data.source {kind!r}: give 'prepared' or 'folder'")
    if getattr(data, "simulated", False):
        _check_simulated(data.path, kind, _stage(data))
        source.namespace = patients.SIMULATED
    source.namespace = getattr(data, "namespace", "") or source.namespace
    if (group := getattr(data, "group", "image")) not in GROUPS:
        raise PacxError(f"data.group {group!r}: choose {' or '.join(GROUPS)}")
    if group == "study":
        source = studies.Studies(source, data.path)
    return _limited(source, data)


def _check_simulated(path: str, kind: str, stage: str = "") -> None:
    """PacxError where a set says that its patients are real ones.

    The preset runlocal has `data.simulated`; with another path the card would call real
    patients simulated, and nobody would look for them among those of a probe.
    """
    if kind == "folder":
        if urls.is_remote(path):  # of which what lies above is not read
            return
        folder = pathlib.Path(path)
        places = [folder.absolute(), *folder.absolute().parents[:2]]
        known = any((place / "cohort_layout.json").is_file() for place in places)
    else:
        card = _read_json(staging.local(path, stage) / "croissant.json") or {}
        known = str(card.get("name", "")).endswith("-simulated")
    if not known:
        raise PacxError(
            f"config.data.simulated is True, as in the preset runlocal, but {path} is "
            "not from data/cohort: give --config.data.simulated=false"
        )


def open_splits(data: Any) -> dict[str, Source]:
    """The splits that a run trains on and validates on, by name; see `open_source`."""
    opened = {s: open_source(data, s) for s in (data.train_split, data.val_split)}
    train = opened[data.train_split]
    return opened | {data.train_split: subsets.few_labels(train, data)}


def _limited(source: Source, data: Any) -> Source:
    """At most `data.limit` examples, drawn once and for all."""
    limit = int(getattr(data, "limit", 0))
    if limit < 0:
        raise PacxError(f"data.limit {limit}: give 0 (all) or a positive number")
    if 0 < limit < len(source):
        drawn = np.random.default_rng(0).permutation(len(source))[:limit]
        source = subsets.Subset(source, np.sort(drawn))
    return source


def _stage(data: Any) -> str:
    return getattr(data, "stage", "")


def _refuse_folder_fields(data: Any) -> None:
    """PacxError for a field that would be ignored: preparation fixed these."""
    for field in dataclasses.fields(folders.FolderSpec):
        value = getattr(data, field.name, field.default)
        if field.name in ("path", "label_columns") or value == field.default:
            continue
        raise PacxError(
            f"data.{field.name} {value!r} is for data.source=folder; of a prepared set "
            "data/prepare.py decides it: leave it out, or, where it is the recipe's, "
            f"give --config.data.{field.name}={field.default!r}"
        )


def splits(data: Any) -> tuple[str, ...]:
    """Names of the splits that there may be; a folder's may be empty."""
    if parts := mixture.parts(data):
        return tuple(dict.fromkeys(s for part in parts for s in splits(part)))
    if getattr(data, "source", "") == "prepared":
        near = _manifest_alone(data.path, _stage(data))
        return tuple(prepared.read(near, not urls.is_remote(data.path))["splits"])
    return SPLITS


def _manifest_alone(path: str, stage: str) -> pathlib.Path:
    """The folder of a prepared set; of a remote one a copy that may lack records."""
    try:
        return staging.local(
            path, stage, {prepared.FILE}.__contains__, setting="data.path"
        )
    except Missing:
        raise PacxError(
            f"{path}: no prepared data set (no {prepared.FILE}): check the path, or "
            "make one (pacx prepare); a run reads a folder by data.source=folder"
        ) from None


def _read_json(path: pathlib.Path) -> Any:
    """What a file holds; None where that cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


class FolderSource:
    """A tree of JPEG, PNG and DICOM files, with or without a CSV of labels.

    Attributes:
      views: the fine name of each image's view; [] where no table states them.
    """

    def __init__(self, spec: folders.FolderSpec, split: str, stage: str = ""):
        root = staging.local(spec.path, stage, setting="data.path")
        csv = str(staging.local(spec.csv, stage)) if spec.csv else ""
        if (root / prepared.FILE).is_file():
            raise PacxError(
                f"{spec.path}: a prepared data set; give data.source=prepared"
            )
        local = dataclasses.replace(spec, path=str(root), csv=csv)
        listing = folders.read_folder(local)
        self._root = listing.root
        self._shown = spec.path if urls.is_remote(spec.path) else listing.root
        rows = [i for i, s in enumerate(listing.splits) if s == split]
        if not rows:
            found = ", ".join(f"{s} {listing.splits.count(s)}" for s in SPLITS)
            raise NoSplit(
                f"{spec.path}: the {split} split is empty ({found}); change the split "
                f"column or data.{split}_fraction"
            )
        self._paths = [listing.paths[i] for i in rows]
        self._patients = [listing.patients[i] for i in rows] if listing.patients else []
        self._labels = listing.labels[rows]
        self._studies = None
        self.views = [listing.views[i] for i in rows] if listing.views else []
        if listing.studies:
            named = self.views or ["unknown"] * len(rows)
            self._studies = studies.Index([listing.studies[i] for i in rows], named)
        self._reports = {k: [v[i] for i in rows] for k, v in listing.reports.items()}
        self.label_names = listing.label_names
        self.split = split
        self.namespace = patients.FOLDER
        nobody = f"{spec.path}: {patients.NOBODY.format(what='image')}"
        self.notes = (*listing.notes, *(() if self._patients else (nobody,)))
        self.fingerprint = subsets.digest(
            listing.fingerprint, split, *self._paths, self._labels.tobytes()
        )
        self.entries = ("image", "path")
        self.entries += ("labels",) if self.label_names else ()
        self.entries += ("patient_id",) if self._patients else ()
        self.entries += ("study_id", "view") if self._studies else ()
        self.entries += tuple(self._reports)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> dict[str, Any]:
        path = self._paths[i]
        example: dict[str, Any] = {
            "image": files.read_bytes(self._root / path),
            "path": path,
        }
        if self.label_names:
            example["labels"] = self._labels[i]
        if self._patients:
            example["patient_id"] = self._patients[i]
        if self._studies:
            example["study_id"] = self._studies.ids[i]
            example["view"] = self._studies.views[i]
        return example | {name: texts[i] for name, texts in self._reports.items()}

    def name(self, i: int) -> str:
        return f"{str(self._shown).rstrip('/')}/{self._paths[i]}"

    def patients(self) -> list[str] | None:
        """The patient of each example; None where the data name none."""
        return list(self._patients) or None

    def paths(self) -> list[str]:
        """The path of each image."""
        return list(self._paths)

    def studies(self) -> studies.Index | None:
        """The study and view of each image; None where the table names none."""
        return self._studies

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        return self._labels


class PreparedSource:
    """One split of a folder that data/prepare.py wrote: TFDS over ArrayRecord."""

    def __init__(self, path: str, split: str, stage: str = ""):
        # Importing TFDS takes a second, which a folder of images need not pay.
        import tensorflow_datasets as tfds

        _manifest_alone(path, stage)  # before a bucket of other things is copied
        folder = staging.local(path, stage)
        if not folder.is_dir():
            raise PacxError(f"{path}: no such folder; check data.path")
        with staging.named(folder, path):
            about = prepared.read(folder)
        sizes = about["splits"]
        if split not in sizes:
            raise NoSplit(
                f"{path}: no split {split!r}; it has {', '.join(sorted(sizes))}"
            )
        try:
            prepared.check_features(folder)
            builder = tfds.builder_from_directory(str(folder))
            self._forms = records.forms(builder.info.features)
            self._records = builder.as_data_source(split=split).data_source
            for file in builder.info.splits[split].filepaths:
                if pathlib.Path(file).parent.resolve() != folder.resolve():
                    raise ValueError(f"records in another folder, {file}")
            if set(builder.info.features) != set(about["entries"]):
                raise ValueError("other entries than in pacx.json")
            if len(self._records) != sizes[split]:
                raise ValueError(f"{len(self._records)} of {sizes[split]} examples")
        except Exception as error:  # TFDS and ArrayRecord raise many kinds
            reason = " ".join(str(error).split())[:200]
            raise PacxError(
                f"{path}: damaged ({reason}); delete it and prepare it again"
            ) from None
        self._path = path
        file = about["patients"].get(split)
        self._patients = folder / file if file else None
        file = about.get("studies", {}).get(split)  # not in older sets
        self._studies = folder / file if file else None
        self._scale = float(about.get("ecg_scale", 1.0))
        self._lead_order = about.get("lead_order", "standard")
        self.label_names = tuple(about["label_names"])
        self.split = split
        self.entries = tuple(about["entries"])
        self.namespace = about["namespace"]
        self.fingerprint = subsets.digest(about["fingerprint"], split)
        what = "image" if "image" in self.entries else "record"
        nobody = f"{path}: {patients.NOBODY.format(what=what)}"
        self.notes = () if self._patients else (nobody,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            example = records.parse(self._records[int(i)], self._forms)
        except Exception as error:  # a damaged record, as ArrayRecord words it
            reason = " ".join(str(error).split())[:200]
            raise PacxError(
                f"{self._path}: {self.split}[{i}] cannot be read ({reason})"
            ) from None
        if _SCALED in example:
            whole = example[_SCALED].astype(np.float32)
            example[_SCALED] = whole * np.float32(self._scale)
            example["lead_order"] = self._lead_order
        return example

    def name(self, i: int) -> str:
        # The path of the original stands in the record, which may be the very thing
        # that cannot be read.
        try:
            return f"{self._path}: {self.split}[{i}] {self[i]['path']}"
        except Exception:
            return f"{self._path}: {self.split}[{i}]"

    def patients(self) -> list[str] | None:
        """The patient of each example, from a file of their own; None without any."""
        if not self._patients:
            return None
        found = _read_json(self._patients)
        if not isinstance(found, list) or len(found) != len(self):
            raise self._damaged(self._patients, "patients")
        return found

    def paths(self) -> list[str]:
        """The path of each image, "" where its record is unreadable."""
        return [record["path"] if record else "" for record in self._all()]

    def studies(self) -> studies.Index | None:
        """The study and view of each image, from a file of their own, or None."""
        if not self._studies:
            return None
        found = _read_json(self._studies)
        lists = [found.get(k) for k in ("study_id", "view")] if found else [None]
        good = all(type(x) is list and len(x) == len(self) for x in lists)
        if not good or not all(name in views.FINE for name in lists[1]):
            raise self._damaged(self._studies, "studies")
        return studies.Index(*lists)

    def _damaged(self, file: pathlib.Path, what: str) -> PacxError:
        return PacxError(
            f"{file}: damaged (not the {what} of {len(self)} examples); delete "
            f"{self._path} and prepare it again"
        )

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing or unreadable, -1 = uncertain."""
        missing = np.full(len(self.label_names), np.nan, np.float32)
        rows = [record["labels"] if record else missing for record in self._all()]
        return np.asarray(rows, np.float32).reshape(len(rows), len(missing))

    def _all(self) -> Iterator[dict[str, Any] | None]:
        """Every record as it is stored; None for what cannot be read."""
        for start in range(0, len(self), _READ_AT_ONCE):
            rows = range(start, min(start + _READ_AT_ONCE, len(self)))
            try:
                read = self._records.__getitems__(list(rows))
                examples = [records.parse(record, self._forms) for record in read]
            except Exception:  # a damaged one among them, which training leaves out
                examples = [self._or_none(i) for i in rows]
            yield from examples

    def _or_none(self, i: int) -> dict[str, Any] | None:
        try:
            return self[i]
        except PacxError:
            return None
