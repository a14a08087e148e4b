"""The comparison in words and in plain text, for the terminal and the report.

All take the row dicts of `comparison.Comparison`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from pacx_jax.evaluate.comparison import MIN_TRAININGS, verdict
from pacx_jax.evaluate.reports.words import PACX, Words

ROLES = ("compared", "floor", "ceiling")


@dataclasses.dataclass(frozen=True)
class Arm:
    """How an arm is shown.

    Attributes:
      name: for people, e.g. "MAE continued".
      role: "compared", "floor" (what no pretraining or a control reaches) or
        "ceiling" (what the physiology itself would give).
      description: one sentence, what this arm is.
      charted: whether it has a line in the charts, where many would hide each other.
    """

    name: str
    role: str = "floor"
    description: str = ""
    charted: bool = True


def by_count(rows: Sequence[Mapping]) -> bool:
    """Whether the label budgets of rows are numbers of studies, and no fractions."""
    return any(row["fraction"] > 1 for row in rows)


def budget(fraction: float) -> str:
    """0.01 -> "1%"; a number of studies, 1500 -> "1,500"."""
    return f"{fraction:,}" if fraction > 1 else f"{100 * fraction:g}%"


def labelled(fraction: float) -> str:
    """0.01 -> "1% of the labels"; 1500 -> "1,500 labelled studies"."""
    of = "labelled studies" if fraction > 1 else "of the labels"
    return f"{budget(fraction)} {of}"


def counted(rows: Sequence[Mapping]) -> str:
    """How many trainings, label subsets and patients stand behind rows."""
    n = {key: max(row[key] for row in rows) for key in ("trainings", "subsets")}
    patients = max(row["n_patients"] for row in rows)
    says = [f"{n['trainings']} training seed{'s' * (n['trainings'] > 1)}"]
    says += [f"{n['subsets']} label subset{'s' * (n['subsets'] > 1)}"]
    return ", ".join([*says, f"{patients:,} patients"])


def number(value: float | None, signed: bool = False) -> str:
    """Three decimals, or "n/a" where undefined."""
    if value is None or value != value:
        return "n/a"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """ "0.020 to 0.100", or an empty string where there is none."""
    if low is None or high is None:
        return ""
    return f"{number(low, signed)} to {number(high, signed)}"


def minus(text: str) -> str:
    """A minus sign instead of the hyphen before a digit."""
    return re.sub(r"(?<![^ (])-(?=\d)", "−", text)


def lead(summary: Sequence[Mapping], words: Words = PACX) -> list[str]:
    """Sentences for a first paragraph: budgets of one outcome said together."""
    of = "labelled studies" if by_count(summary) else "of the training labels"
    says = {
        "gain": f"{words.treatment} scores higher than {words.baseline} with {{}} {of}"
        ": shown.",
        "loss": f"{words.treatment} scores lower than {words.baseline} with {{}} {of}"
        ": shown.",
        "not shown": f"a difference is not shown with {{}} {of}.",
        "not judged": f"{words.treatment} is compared with {words.baseline} with {{}} "
        f"{of}: not judged, as that takes {MIN_TRAININGS} training seeds.",
    }
    outcomes: dict[tuple[str, str], list[str]] = {}
    for row in summary:
        value = number(row["difference"], True)
        span = interval(row["low"], row["high"], True) or "no interval"
        key = row["labels"], verdict(row)
        part = f"{budget(row['fraction'])} ({value}; {span})"
        outcomes.setdefault(key, []).append(part)
    sentences = []
    for (group, outcome), parts in outcomes.items():
        listed = ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
        sentences.append(f"On {group} labels, {says[outcome].format(listed)}")
    return sentences


def arm_order(table: Sequence[Mapping], arms: Mapping[str, Arm]) -> list[str]:
    """Arms of the table: as `arms` lists them within each role, then the others."""
    present = dict.fromkeys(row["arm"] for row in table)
    known = [a for role in ROLES for a in arms if arms[a].role == role]
    return [a for a in known if a in present] + [a for a in present if a not in known]


def cells(table: Sequence[Mapping]) -> dict[tuple[str, str, float], Mapping]:
    """Rows by (arm, labels, fraction)."""
    return {(row["arm"], row["labels"], row["fraction"]): row for row in table}


def render_table_text(
    table: Sequence[Mapping],
    summary: Sequence[Mapping] = (),
    arms: Mapping[str, Arm] | None = None,
    words: Words = PACX,
    pairs: Sequence[Mapping] = (),
) -> str:
    """The comparison for a terminal, as aligned plain text.

    Args:
      table: `Comparison.table`.
      summary: `Comparison.summary`, printed below with its intervals.
      arms: how arms are named and ordered.
      words: the method's.
      pairs: rows of `Comparison.pairs`, printed below likewise, those of groups alone.

    Returns:
      Text that ends without a newline.
    """
    lines, arms = [], arms or {}
    if table:
        by = "labelled training studies"
        by = by if by_count(table) else "share of the training labels"
        lines += [f"AUROC of a linear probe, by {by}", f"({counted(table)})"]
        lines += [*_arm_lines(table, arms), ""]
    if summary:
        lines += _pair_lines(f"{words.treatment} - {words.baseline}", summary)
    compared: dict[tuple[str, str], list[Mapping]] = {}
    for row in pairs:
        if row["group"]:
            compared.setdefault((row["a"], row["b"]), []).append(row)
    for pair, rows in compared.items():
        a, b = (arms[arm].name if arm in arms else arm for arm in pair)
        lines += ["", *_pair_lines(f"{a} - {b}", rows)]
    return "\n".join(lines).rstrip() or "No comparison: nothing was probed."


def _pair_lines(name: str, rows: Sequence[Mapping]) -> list[str]:
    """A heading, and one line a row of `Comparison.summary` or of `pairs`."""
    lines = [f"{name}, paired, with its 95% interval ({counted(rows)})"]
    wide = max(len(row["labels"]) for row in rows)
    for row in rows:
        shown = verdict(row)
        shown = shown if shown.startswith("not") else shown + " shown"
        lines.append(
            f"{row['labels']:<{wide}}  {budget(row['fraction']):>5}  "
            f"{number(row['difference'], True):>7}  "
            f"({interval(row['low'], row['high'], True)})  {shown}{_holm(row)}"
        )
    return lines


def p_after_holm(row: Mapping) -> str:
    """ "p 0.012 after Holm"; "" where no p was computed, as of few trainings."""
    p = row.get("p_holm")
    if p is None:
        return ""
    return f"p {p:.2g} after Holm" if p >= 0.001 else "p < 0.001 after Holm"


def _holm(row: Mapping) -> str:
    said = p_after_holm(row)
    return f", {said}" if said else ""


def _arm_lines(table: Sequence[Mapping], arms: Mapping[str, Arm]) -> list[str]:
    """One line an arm: its AUROCs by fraction, the label groups side by side."""
    rows = cells(table)
    groups = list(dict.fromkeys(row["labels"] for row in table if row["group"]))
    fractions = sorted({row["fraction"] for row in table})
    names = {a: arms[a].name if a in arms else a for a in arm_order(table, arms)}
    room = max(map(len, names.values()))
    wide = 3 + max([8 * len(fractions), *map(len, groups)])

    def line(name: str, parts: Sequence[str]) -> str:
        return f"{name:<{room}}" + "".join(f"{part:>{wide}}" for part in parts)

    shares = "".join(f"{budget(f):>8}" for f in fractions)
    lines = [line("", groups), line("", [shares] * len(groups))]
    for arm, name in names.items():
        values = {key: number(row["auroc"]) for key, row in rows.items()}
        parts = [
            "".join(f"{values.get((arm, g, f), 'n/a'):>8}" for f in fractions)
            for g in groups
        ]
        lines.append(line(name, parts))
    return lines
