"""Studies of several views: the images of one visit as one example.

Records stay one image each; a study is the images of one patient with one study id.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import reports, subsets, views


@dataclasses.dataclass(frozen=True)
class Index:
    """The study and the view of each of a source's images.

    Attributes:
      ids: n study ids, unique within a patient; "" = a study of its own.
      views: n fine names, see `views.FINE`.
    """

    ids: list[str]
    views: list[str]


class Studies:
    """The studies of a source of images, in the order of their first images.

    An example has `images`, a list of raw images; `views`, their fine names; `labels`,
    for each the strongest of the images' (see `strongest`); of the first image
    `patient_id`, `study_id` and `path`; and the sections of the report, of the first
    image that has each. Its images stand in one order: the first frontal, the first
    lateral and the first of unknown view, then the others as recorded.

    The attributes are those of `sources.Source`.
    """

    def __init__(self, source: Any, shown: str):
        """Groups a source; `shown` is its name in messages.

        Raises:
          PacxError: the source names no studies.
        """
        index = source.studies()
        if index is None:
            raise PacxError(
                f"{shown}: data.group=study, but it names no studies: prepare it "
                "again, a folder with a column study_id, or give data.group=image"
            )
        self._source, self._views = source, index.views
        owners = source.patients() or [""] * len(source)
        groups: dict[tuple, list[int]] = {}
        for row, (patient, study) in enumerate(zip(owners, index.ids, strict=True)):
            key = (patient, study) if study else (patient, study, row)
            groups.setdefault(key, []).append(row)
        self._groups = [self._ordered(rows) for rows in groups.values()]
        self.split, self.namespace = source.split, source.namespace
        self.label_names = source.label_names
        kept = (e for e in source.entries if e not in ("image", "mask", "view"))
        self.entries = ("images", *(e for e in kept if e != "view_origin"))
        self.fingerprint = subsets.digest(
            source.fingerprint, "studies", *index.ids, *index.views
        )
        self.notes = (*source.notes, f"{shown}: {self._described()}")

    def _ordered(self, rows: list[int]) -> list[int]:
        kinds = [views.number(self._views[row]) for row in rows]
        first = [kinds.index(kind) for kind in sorted(set(kinds))]
        others = [i for i in range(len(rows)) if i not in first]
        return [rows[i] for i in first + others]

    def _described(self) -> str:
        sizes = collections.Counter(min(len(rows), 4) for rows in self._groups)
        kinds = collections.Counter(views.coarse(name) for name in self._views)
        each = [
            f"{sizes[k]:,} of {k if k < 4 else '4 or more'} views"
            for k in range(1, 5)
            if sizes[k]
        ]
        counts = [f"{kinds[k]:,} {k}" for k in views.COARSE if kinds[k]]
        return (
            f"{self.split}: {len(self):,} studies of {len(self._views):,} images "
            f"({', '.join(each)}; {', '.join(counts)})"
        )

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, i: int) -> dict[str, Any]:
        rows = self._groups[int(i)]
        found = [self._source[row] for row in rows]
        example = {k: v for k, v in found[0].items() if k in self.entries}
        example["images"] = [each["image"] for each in found]
        example["views"] = [self._views[row] for row in rows]
        for name in reports.SECTIONS:
            if name in example:
                example[name] = next((e[name] for e in found if e[name]), "")
        if self.label_names:
            example["labels"] = strongest(np.stack([e["labels"] for e in found]))
        return example

    def name(self, i: int) -> str:
        rows = self._groups[int(i)]
        more = f" (a study of {len(rows)} images)" if len(rows) > 1 else ""
        return self._source.name(rows[0]) + more

    def counts(self) -> np.ndarray:
        """(n,) number of images of each study."""
        return np.array([len(rows) for rows in self._groups])

    def patients(self) -> list[str] | None:
        """The patient of each study; None where the data name none."""
        found = self._source.patients()
        return None if found is None else [found[rows[0]] for rows in self._groups]

    def labels(self) -> np.ndarray:
        """float32 (n, c), NaN = missing, -1 = uncertain."""
        found = self._source.labels()
        return np.stack([strongest(found[rows]) for rows in self._groups])


def strongest(labels: np.ndarray) -> np.ndarray:
    """The labels of a study from those of its images, (k, c) -> (c,).

    1 on one of them, else -1 (uncertain), else 0, else NaN (missing).
    """
    rank = np.select([labels == 1, labels == -1, labels == 0], [3, 2, 1], 0)
    best = rank.argmax(0)
    return np.take_along_axis(labels, best[None], 0)[0].astype(np.float32)
