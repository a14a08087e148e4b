"""The report's sections of evidence: tables, charts and images as HTML.

Each takes the plain data of one field of `report.Report` and returns "" for no data.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from pacx_jax.evaluate import figures, page, tables
from pacx_jax.evaluate.comparison import verdict
from pacx_jax.evaluate.tables import Arm

Arms = Mapping[str, Arm]
Rows = Sequence[Mapping]


def differences(summary: Rows) -> str:
    """PaCX - MAE: the forest chart, the findings in sentences, and the table."""
    if not summary:
        return ""
    forest = [
        (
            f"{row['labels']}, {tables.percent(row['fraction'])}",
            row["difference"],
            row["low"],
            row["high"],
            verdict(row["low"], row["high"]).split()[0],
        )
        for row in summary
        if None not in (row["difference"], row["low"], row["high"])
    ]
    title = "PaCX − MAE, with its 95% interval"
    chart = figures.forest_chart(forest, title, "difference in AUROC")
    sentences = "".join(
        f"<li>{html.escape(tables.minus(s))}</li>" for s in tables.findings(summary)
    )
    heads = ("labels", "share", "studies", "MAE", "PaCX", "PaCX − MAE")
    heads += ("95% interval", "subsets", "test patients", "effect")
    rows = [
        (
            row["labels"],
            tables.percent(row["fraction"]),
            f"{row['n_labels']:,}",
            tables.number(row["mae"]),
            tables.number(row["pacx"]),
            tables.minus(tables.number(row["difference"], True)),
            tables.minus(tables.interval(row["low"], row["high"], True)),
            str(row["seeds"]),
            f"{row['n_patients']:,}",
            verdict(row["low"], row["high"]),
        )
        for row in summary
    ]
    caption = (
        "Macro AUROC on the test patients, averaged over labelled subsets; share and "
        "studies are the labelled part of the training set"
    )
    return (
        f'<div class="charts">{chart}<ul class="prose">{sentences}</ul></div>\n'
        + page.simple_table(caption, heads, rows)
    )


def efficiency(table: Rows, arms: Arms) -> str:
    """AUROC against the share of labels, one chart a label group."""
    groups = dict.fromkeys(row["labels"] for row in table if row["group"])
    charts = "".join(_efficiency(table, arms, group) for group in groups)
    return f'<div class="charts">{charts}</div>\n' if charts else ""


def every_arm(table: Rows, arms: Arms) -> str:
    """The table of arms with floors and ceiling, what they are, and each label."""
    if not table:
        return ""
    groups = list(dict.fromkeys(row["labels"] for row in table if row["group"]))
    parts = [
        page.paragraph(
            "A floor is what an encoder reaches without learning physiology from "
            "pairs; the ceiling reads the ECG and laboratory embeddings themselves, "
            "which PaCX never sees when it is used."
        ),
        _arm_table(table, arms, groups, "Macro AUROC (95% interval)"),
    ]
    described = [
        f"<li><strong>{html.escape(arms[a].name)}</strong>: "
        f"{html.escape(arms[a].description)}</li>"
        for a in tables.arm_order(table, arms)
        if a in arms and arms[a].description
    ]
    if described:
        parts.append(f'<ul class="prose">{"".join(described)}</ul>\n')
    parts.append(efficiency(table, arms))
    singles = list(dict.fromkeys(r["labels"] for r in table if not r["group"]))
    if singles:
        each = _arm_table(table, arms, singles, "AUROC of each label (95% interval)")
        parts.append(page.details("Every label by itself", each))
    return "".join(parts)


def controls(pairs: Rows, arms: Arms) -> str:
    """Paired differences between arms, one row a pair."""
    pairs = [row for row in pairs if row["group"]]
    if not pairs:
        return ""
    found = {(r["a"], r["b"], r["labels"], r["fraction"]): r for r in pairs}
    groups = list(dict.fromkeys(row["labels"] for row in pairs))
    fractions = sorted({row["fraction"] for row in pairs})
    body = ""
    for a, b in dict.fromkeys((row["a"], row["b"]) for row in pairs):
        names = [arms.get(arm, Arm(arm)).name for arm in (a, b)]
        body += f'<tr><th scope="row">{html.escape(" − ".join(names))}</th>'
        for group in groups:
            for fraction in fractions:
                body += _difference_cell(found.get((a, b, group, fraction)))
        body += "</tr>"
    text = (
        "If the gain comes from the pairing of X-rays with ECGs and laboratory values, "
        "then more training without pairs, or with pairs shuffled between patients, "
        "must not give it. Each cell is a paired difference in macro AUROC, its 95% "
        "interval, and what that shows."
    )
    head = _column_head("pair of arms", groups, fractions)
    return page.paragraph(text) + page.table("Paired differences", head, body)


def _difference_cell(row: Mapping | None) -> str:
    if row is None:
        return "<td>not run</td>"
    kind = verdict(row["low"], row["high"])
    value = tables.minus(tables.number(row["difference"], True))
    span = tables.minus(tables.interval(row["low"], row["high"], True))
    return (
        f"<td>{value}<small>{span}</small>"
        f'<span class="badge {kind.split()[0]}">{kind}</span></td>'
    )


def _column_head(first: str, names: Sequence[str], fractions: Sequence[float]) -> str:
    """Two header rows: the label names, and under each the fractions."""
    spans = "".join(
        f'<th scope="colgroup" colspan="{len(fractions)}">{html.escape(n)}</th>'
        for n in names
    )
    shares = "".join(
        f'<th scope="col">{tables.percent(f)}</th>' for _ in names for f in fractions
    )
    return f'<tr><th scope="col" rowspan="2">{first}</th>{spans}</tr><tr>{shares}</tr>'


def _efficiency(table: Rows, arms: Arms, group: str) -> str:
    """AUROC against the share of labels, one line an arm."""
    order = tables.arm_order(table, arms)
    rows = tables.cells(table)
    fractions = sorted({row["fraction"] for row in table})
    series, plain = [], 0
    for arm in sorted(order, key=lambda a: (a != "pacx", a != "mae")):
        found = [rows[arm, group, f] for f in fractions if (arm, group, f) in rows]
        shown = arms.get(arm, Arm(arm))
        style = arm if arm in ("pacx", "mae") else f"s{plain % 5 + 1}"
        style = "top" if shown.role == "ceiling" else style
        plain += style.startswith("s")
        values, low, high = (
            [np.nan if row[key] is None else row[key] for row in found]
            for key in ("auroc", "low", "high")
        )
        bounded = arm in ("pacx", "mae")
        series.append(
            figures.Series(
                shown.name,
                [row["fraction"] for row in found],
                values,
                style,
                low if bounded else None,
                high if bounded else None,
                markers=True,
            )
        )
    return figures.line_chart(
        series,
        f"Label efficiency, {group} labels",
        "share of the training labels",
        "AUROC",
        [(f, tables.percent(f)) for f in fractions],
        log_x=True,
        reference=0.5,
        height=300,
    )


def _arm_table(table: Rows, arms: Arms, names: Sequence[str], caption: str) -> str:
    rows = tables.cells(table)
    fractions = sorted({row["fraction"] for row in table})
    head = _column_head("arm", names, fractions)
    body, role = "", None
    for arm in tables.arm_order(table, arms):
        shown = arms.get(arm, Arm(arm))
        if shown.role != role and arms:
            role = shown.role
            text = {"floor": "Floors and controls"}.get(role, role.capitalize())
            span = 1 + len(names) * len(fractions)
            body += f'<tr><th scope="rowgroup" colspan="{span}">{text}</th></tr>'
        mark = ' class="mark"' if arm == "pacx" else ""
        body += f'<tr{mark}><th scope="row">{html.escape(shown.name)}</th>'
        for name in names:
            for fraction in fractions:
                row = rows.get((arm, name, fraction))
                if row is None:
                    body += "<td>not run</td>"
                    continue
                span = ""
                if row["low"] is not None:
                    span = f"<small>{row['low']:.3f}–{row['high']:.3f}</small>"
                body += f"<td>{tables.number(row['auroc'])}{span}</td>"
        body += "</tr>"
    return page.table(caption, head, body)


def curves(named: Mapping[str, tuple]) -> str:
    """Loss curves: "panel/series" names share one chart a panel."""
    panels: dict[str, list[figures.Series]] = {}
    for name, (steps, values) in named.items():
        panel, _, line = name.partition("/")
        drawn = panels.setdefault(panel, [])
        style = ("pacx", "mae", "s3", "s2", "s4", "s5")[len(drawn) % 6]
        drawn.append(figures.Series(line or panel, steps, values, style))
    charts = "".join(
        figures.line_chart(series, panel, "step", "value")
        for panel, series in panels.items()
    )
    return f'<div class="charts">{charts}</div>\n' if charts else ""


def reconstructions(triplets: Sequence[tuple]) -> str:
    """Rows of input, masked input and reconstruction."""
    names = ("input", "visible part", "reconstruction")
    rows = [
        page.image_row(
            [
                (figures.png_uri(image), f"X-ray {i + 1}: {name}", name)
                for image, name in zip(triplet, names, strict=True)
            ]
        )
        for i, triplet in enumerate(triplets)
    ]
    return f'<div class="images three">{"".join(rows)}</div>\n' if rows else ""


def retrieval(rows: Sequence[Mapping]) -> str:
    """Recall at k against chance, and further measures, one row an encoder."""
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [k for k in keys if k not in ("encoder", "target", "n")]

    def text(key: str, value: float | None) -> str:
        if value is None or "@" not in key:
            return tables.minus(tables.number(value))
        return f"{100 * value:.1f}%"

    heads = ["X-ray encoder", "looked for", "among"]
    heads += [k.replace("_", " ").replace("@", " at ") for k in keys]
    body = [
        [str(row["encoder"]), str(row["target"]), f"{row['n']:,}"]
        + [text(key, row.get(key)) for key in keys]
        for row in rows
    ]
    said = (
        "Recall at k: the share of X-rays whose own patient's ECG or laboratory "
        "embedding is among the k most similar; chance is k divided by their number."
    )
    return page.paragraph(said) + page.simple_table("Retrieval", heads, body)


def rollouts(quadruples: Sequence[tuple]) -> str:
    """Rows of X-ray, MAE and PaCX attention, and their difference."""
    rows = []
    for i, (image, mae, pacx, difference) in enumerate(quadruples):
        shades = figures.colourise((difference + 1) / 2, figures.DIVERGING)
        shown = (
            image,
            figures.overlay(image, mae),
            figures.overlay(image, pacx),
            shades,
        )
        names = ("X-ray", "MAE", "PaCX", "PaCX − MAE")
        rows.append(
            page.image_row(
                [
                    (figures.png_uri(part), f"X-ray {i + 1}: attention, {name}", name)
                    for part, name in zip(shown, names, strict=True)
                ]
            )
        )
    if not rows:
        return ""
    said = (
        "Attention rolled out from the CLS token through all layers, each map scaled "
        "to its own range: bright is more. In the difference, red is where PaCX draws "
        "more than MAE, blue where it draws less. It shows where information can "
        "flow, not why a prediction is made."
    )
    return page.paragraph(said) + f'<div class="images four">{"".join(rows)}</div>\n'
