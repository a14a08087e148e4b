"""Groups of examples by a user's table, within which a control shuffles pairs.

Shuffled over all patients, pairs lose the patient and with it what any table says of
him. Shuffled within view and sex, they lose the patient alone: what is left of a gain
is what view and sex tell.
"""

from __future__ import annotations

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import patients, tables
from pacx_jax.modalities import table as teacher_table


def of(source, file: str, columns: tuple[str, ...]) -> np.ndarray:
    """Number of each example's group: those that agree in all columns.

    Args:
      source: one split.
      file: a CSV with a column of studies or admissions, else of images, else of
        patients (`input.tables.ROLES`).
      columns: of it; case and blanks around a cell do not count.

    Returns:
      (n,) int64 from 0.

    Raises:
      PacxError: no table or no columns, one that lacks examples of the source, or has
        two different rows of one.
    """
    if not file or not columns:
        raise PacxError(
            "config.data.shuffle_within and config.data.shuffle_table go together: "
            "name columns, and the CSV that has them"
        )
    table = tables.read_table(file)
    roles = tables.columns(table, {})
    by = {"study": roles["study"], "image": roles["path"], "patient": roles["patient"]}
    kind = next((k for k, column in by.items() if column), None)
    if kind is None:
        raise PacxError(
            f"{file}: no column of studies, images or patients; call one hadm_id, path "
            f"or subject_id, of {', '.join(table.columns)}"
        )
    form = str.strip if kind == "image" else patients.canonical
    cells = zip(
        *(table.column(c, "config.data.shuffle_within") for c in columns), strict=True
    )
    known: dict[str, tuple[str, ...]] = {}
    named = table.column(by[kind], "")
    for row, (one, found) in enumerate(zip(named, cells, strict=True), start=2):
        group = tuple(" ".join(cell.split()).lower() for cell in found)
        if known.setdefault(form(one), group) != group:
            raise PacxError(
                f"{file}, row {row}: another row of {one} has other values of "
                f"{', '.join(columns)}; keep one"
            )
    ids = list(teacher_table.ids(source, kind))
    if lacking := [i for i in ids if i not in known]:
        raise PacxError(
            f"{file}: column {by[kind]!r} lacks {len(lacking)} of {len(ids)} examples "
            f"of the {source.split} split, such as {lacking[0] or '(no id)'}; add them"
        )
    numbers = {group: i for i, group in enumerate(sorted({known[i] for i in ids}))}
    return np.array([numbers[known[i]] for i in ids])


def shuffled(
    usable: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """An order of n examples that moves the usable ones within their groups.

    Args:
      usable: (n,) bool; the others stay where they are.
      groups: (n,) of each example; None: one group of all.

    Returns:
      (n,) indices: example i gets what example order[i] had.
    """
    order = np.arange(len(usable))
    of_group = np.zeros(len(usable), int) if groups is None else groups
    for group in np.unique(of_group):
        rows = np.flatnonzero(usable & (of_group == group))
        order[rows] = rows[rng.permutation(len(rows))]
    return order
