"""The comparison in words and in plain text, for the terminal, Markdown and report.

All take the row dicts of `comparison.Comparison`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pacx_jax.evaluate.comparison import verdict

ROLES = ("compared", "floor", "ceiling")


@dataclasses.dataclass(frozen=True)
class Arm:
    """How an arm is shown.

    Attributes:
      name: for people, e.g. "MAE continued".
      role: "compared", "floor" (what no pretraining or a control reaches) or
        "ceiling" (what the physiology itself would give).
      description: one sentence, what this arm is.
    """

    name: str
    role: str = "floor"
    description: str = ""


def percent(fraction: float) -> str:
    """0.01 -> "1%"."""
    return f"{100 * fraction:g}%"


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
    out = []
    for i, letter in enumerate(text):
        before = text[i - 1] if i else " "
        after = text[i + 1 : i + 2]
        out.append(
            "−" if letter == "-" and after.isdigit() and before in " (" else letter
        )
    return "".join(out)


def finding(row: Mapping) -> str:
    """One sentence on a summary row: the numbers, and whether an effect is shown."""
    head = (
        f"At {percent(row['fraction'])} of the labels ({row['n_labels']:,} studies), "
        f"{row['labels']}: "
    )
    if row["difference"] is None:
        return head + "not measurable, as no label has both classes in the test set."
    head += (
        f"PaCX {number(row['pacx'])}, MAE {number(row['mae'])}, difference "
        f"{number(row['difference'], True)} "
        f"({interval(row['low'], row['high'], True)}): "
    )
    return (
        head
        + {
            "gain": "a gain, shown.",
            "loss": "a loss, shown.",
            "not shown": "no difference shown, the interval includes 0.",
        }[verdict(row["low"], row["high"])]
    )


def findings(summary: Sequence[Mapping]) -> list[str]:
    """One plain sentence for each summary row, effects and their absence alike."""
    return [finding(row) for row in summary]


def arm_order(table: Sequence[Mapping], arms: Mapping[str, Arm]) -> list[str]:
    """Arms of the table: as `arms` lists them within each role, then the others."""
    present = dict.fromkeys(row["arm"] for row in table)
    known = [a for role in ROLES for a in arms if arms[a].role == role]
    return [a for a in known if a in present] + [a for a in present if a not in known]


def group_columns(table: Sequence[Mapping]) -> list[tuple[str, float]]:
    """(group, fraction) columns of the group rows: groups as given, fractions up."""
    groups = dict.fromkeys(row["labels"] for row in table if row["group"])
    fractions = sorted({row["fraction"] for row in table})
    return [(group, fraction) for group in groups for fraction in fractions]


def cells(table: Sequence[Mapping]) -> dict[tuple[str, str, float], Mapping]:
    """Rows by (arm, labels, fraction)."""
    return {(row["arm"], row["labels"], row["fraction"]): row for row in table}


def render_table_text(
    table: Sequence[Mapping],
    summary: Sequence[Mapping] = (),
    arms: Mapping[str, Arm] | None = None,
    width: int = 100,
) -> str:
    """The comparison for a terminal: aligned plain text within `width` columns.

    Args:
      table: `Comparison.table`.
      summary: `Comparison.summary`, printed below with its intervals.
      arms: how arms are named and ordered.
      width: longest line; arm names are shortened, then groups stacked, to fit it.

    Returns:
      Text that ends without a newline.
    """
    arms = arms or {}
    rows, columns = cells(table), group_columns(table)
    groups = list(dict.fromkeys(group for group, _ in columns))
    names = {a: arms[a].name if a in arms else a for a in arm_order(table, arms)}
    room = max([len(n) for n in names.values()] + [4])
    each = {g: [f for group, f in columns if group == g] for g in groups}
    side = sum(max(8 * len(each[g]), len(g)) + 3 for g in groups)
    blocks = [groups] if 16 + side <= width else [[g] for g in groups]
    used = max(
        [sum(max(8 * len(each[g]), len(g)) + 3 for g in b) for b in blocks] + [0]
    )
    room = max(8, min(room, width - used))
    lines = ["Test AUROC of a linear probe, by share of the training labels"] * bool(
        table
    )
    for block in blocks if table else []:
        span = {g: max(8 * len(each[g]), len(g)) for g in block}
        lines.append(" " * room + "".join(f"   {g:>{span[g]}}" for g in block).rstrip())
        heads = ["".join(f"{percent(f):>8}" for f in each[g]) for g in block]
        pairs = list(zip(block, heads, strict=True))
        lines.append(" " * room + "".join(f"   {h:>{span[g]}}" for g, h in pairs))
        for a, name in names.items():
            line = f"{name[:room]:<{room}}"
            for g in block:
                values = [rows.get((a, g, f), {}).get("auroc") for f in each[g]]
                text = "".join(f"{number(v):>8}" for v in values)
                line += f"   {text:>{span[g]}}"
            lines.append(line)
        lines.append("")
    if summary:
        lines.append("PaCX - MAE, paired, with its 95% interval")
        wide = max(len(row["labels"]) for row in summary)
        for row in summary:
            shown = verdict(row["low"], row["high"])
            lines.append(
                f"{row['labels']:<{wide}}  {percent(row['fraction']):>5}  "
                f"{number(row['difference'], True):>7}  "
                f"({interval(row['low'], row['high'], True)})  "
                f"{shown if shown == 'not shown' else shown + ' shown'}"
            )
    return "\n".join(lines).rstrip() or "No comparison: nothing was probed."


def markdown_table(
    table: Sequence[Mapping], arms: Mapping[str, Arm] | None = None
) -> str:
    """The group rows as a Markdown table: "0.743 (0.70-0.78)" an arm and column."""
    arms = arms or {}
    rows, columns = cells(table), group_columns(table)
    heads = ["arm"] + [f"{group} {percent(f)}" for group, f in columns]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * len(columns) + "|"]
    for a in arm_order(table, arms):
        texts = [arms[a].name if a in arms else a]
        for group, fraction in columns:
            row = rows.get((a, group, fraction))
            text = number(row["auroc"] if row else None)
            if row and row["low"] is not None:
                text += f" ({row['low']:.2f}–{row['high']:.2f})"
            texts.append(text)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)
