"""The run's report: one self-contained HTML file, without scripts or outside links.

`write_report(path, Report(...))` states what was found, effects and their absence
alike, and then shows the evidence. The same Report gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import html
import json
import pathlib
from collections.abc import Mapping, Sequence

from pacx_jax import files
from pacx_jax.evaluate import evidence, page, probe, tables
from pacx_jax.evaluate.comparison import verdict
from pacx_jax.evaluate.tables import Arm


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the report shows, as plain data; an empty field is said to be so.

    Attributes:
      title: of the page.
      simulated: True where the patients are simulated; said at the top.
      headline: further sentences for the first paragraph, after the findings.
      summary: `Comparison.summary`.
      table: `Comparison.table`.
      pairs: `Comparison.pairs`; those of label groups are shown as controls.
      arms: arm -> how it is shown; also the order of the rows.
      curves: "panel/series" -> (steps, values); series of a panel share a chart.
      reconstructions: (input, masked, reconstruction) uint8 images, (h, w[, 3]).
      retrieval: rows {encoder, target, n, recall@k, chance@k, ...}; further float
        entries (r2, cosine, cosine_centred, ...) become columns.
      rollouts: (image uint8, MAE map, PaCX map, difference): maps of the image's
        height and width in [0, 1], the difference in [-1, 1].
      configs: name -> the configuration, a mapping or text.
      versions: package -> version.
      seeds: name -> seed.
      seconds: stage -> wall time in seconds.
      goodput: run -> its goodput.json (see pacx_jax/run/goodput.py).
      n_resamples: bootstrap resamples behind every interval.
      notes: sentences on limits or oddities of this run.
    """

    title: str = "PaCX-MAE"
    simulated: bool = True
    headline: Sequence[str] = ()
    summary: Sequence[Mapping] = ()
    table: Sequence[Mapping] = ()
    pairs: Sequence[Mapping] = ()
    arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    reconstructions: Sequence[tuple] = ()
    retrieval: Sequence[Mapping] = ()
    rollouts: Sequence[tuple] = ()
    configs: Mapping[str, object] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    goodput: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    n_resamples: int = 1000
    notes: Sequence[str] = ()


def write_report(path: str | pathlib.Path, report: Report) -> None:
    """Write the report to `path`, replacing the file in one step."""
    files.write(path, render(report))


def render(report: Report) -> str:
    """The report as HTML text."""
    body = _header(report)
    body += page.section(
        "PaCX against the MAE it started from",
        evidence.differences(report.summary),
        "No comparison was made in this run.",
    )
    body += page.section(
        "Every arm, with its floors and ceiling",
        evidence.every_arm(report.table, report.arms),
        "No arm was probed in this run.",
    )
    body += page.section(
        "Could something else explain it?",
        evidence.controls(report.pairs, report.arms),
        "No other pair of arms was compared in this run.",
    )
    body += page.section(
        "How it was learned",
        evidence.curves(report.curves),
        "No loss curves were recorded.",
    )
    body += page.section(
        "Reconstructions of masked X-rays",
        evidence.reconstructions(report.reconstructions),
        "No reconstructions were made in this run.",
    )
    body += page.section(
        "Finding a patient's ECG and laboratory values from the X-ray",
        evidence.retrieval(report.retrieval),
        "Retrieval was not measured in this run.",
    )
    body += page.section(
        "Where the encoders look",
        evidence.rollouts(report.rollouts),
        "No attention was recorded in this run.",
    )
    body += page.section("How it was measured", _methods(report))
    body += page.section(
        "To run it again", _provenance(report), "Nothing was recorded about the run."
    )
    return page.document(report.title, body)


def _header(report: Report) -> str:
    parts = [f"<header>\n<h1>{html.escape(report.title)}</h1>\n"]
    if report.simulated:
        parts.append(
            '<p class="banner"><strong>The patients are simulated.</strong> Every '
            "X-ray, ECG, laboratory value and label comes from a program. The numbers "
            "show that the method and this code work, and say nothing about real "
            "patients.</p>\n"
        )
    said = tables.findings(report.summary)
    opening = (
        "Two X-ray encoders are compared. MAE learned from X-rays alone; PaCX is the "
        "same encoder, taught further by the ECGs and laboratory values of the same "
        "patients. Both then see only X-rays, and a linear probe on each predicts "
        "labels of patients that neither has met, scored by AUROC (0.5 is chance, 1 "
        "is perfect). "
    )
    if not said:
        opening += "This run did not compare them. "
    else:
        opening += "In brackets: the difference, and its 95% interval. "
    text = tables.minus(" ".join([opening.strip(), *_short(report.summary)]))
    parts.append(page.paragraph(text, "lead"))
    if report.headline:
        parts.append(page.paragraph(tables.minus(" ".join(report.headline))))
    if said:
        cards = "".join(_card(row) for row in report.summary)
        parts.append(f'<ul class="cards" aria-label="Findings">{cards}</ul>\n')
    for note in report.notes:
        parts.append(page.paragraph(note, "muted"))
    return "".join(parts) + "</header>\n"


def _short(summary: Sequence[Mapping]) -> list[str]:
    """Sentences for the first paragraph: fractions of one outcome said together."""
    says = {
        "gain": "PaCX scores higher than MAE with {} of the training labels: shown.",
        "loss": "PaCX scores lower than MAE with {} of the training labels: shown.",
        "not shown": "a difference is not shown with {} of the training labels.",
    }
    sentences = []
    for group in dict.fromkeys(row["labels"] for row in summary):
        outcomes: dict[str, list[str]] = {}
        for row in (r for r in summary if r["labels"] == group):
            value = tables.number(row["difference"], True)
            span = tables.interval(row["low"], row["high"], True) or "no interval"
            part = f"{tables.percent(row['fraction'])} ({value}; {span})"
            outcomes.setdefault(verdict(row["low"], row["high"]), []).append(part)
        for outcome, parts in outcomes.items():
            listed = ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]
            sentences.append(f"On {group} labels, {says[outcome].format(listed)}")
    return sentences


def _badge(row: Mapping) -> str:
    kind = verdict(row["low"], row["high"])
    text = {"gain": "gain shown", "loss": "loss shown"}.get(kind, kind)
    return f'<span class="badge {kind.split()[0]}">{text}</span>'


def _card(row: Mapping) -> str:
    span = tables.interval(row["low"], row["high"], True)
    return (
        f'<li><div class="what">{html.escape(row["labels"])}, '
        f"{tables.percent(row['fraction'])} of the labels</div>"
        f'<div class="big">{tables.minus(tables.number(row["difference"], True))}</div>'
        f'<div class="from">95% interval {tables.minus(span) or "undefined"}<br>'
        f"AUROC {tables.number(row['mae'])} → {tables.number(row['pacx'])}</div>"
        f"{_badge(row)}</li>"
    )


def _methods(report: Report) -> str:
    grid = ", ".join(f"{c:g}" for c in probe.C_GRID)
    seeds = max([row["seeds"] for row in report.summary] or [0])
    subsets = f" ({seeds} of them here)" if seeds else ""
    return "".join(
        page.paragraph(text)
        for text in (
            "Probe. The encoders are frozen. Features are standardised on the labelled "
            "subset, and an L2-penalised logistic regression is fitted for each label, "
            "missing labels left out. Its penalty is chosen within the subset alone, "
            f"by one rule for every arm: {probe.FOLDS}-fold cross-validated log loss "
            f"over C in {grid} where at least {probe.MIN_CASES} patients of each class "
            f"are in the subset, else C = {probe.FIXED_C:g}.",
            f"Labelled subsets. Below 100%, several random subsets{subsets} are drawn: "
            "one positive study of each label, then a uniform fill. Each subset is the "
            "same for all arms. At 100% there is one, namely everything.",
            "Score. AUROC, exact with ties, on patients of no earlier stage; a macro "
            "AUROC is the mean over the labels of a group that have both classes, "
            "averaged over the subsets.",
            f"Intervals. {report.n_resamples:,} resamples draw test patients with "
            "replacement, with all their studies, and labelled subsets with "
            "replacement. All arms see the same draws, so differences are paired; an "
            "interval spans the 2.5 and 97.5 percentiles. An effect is called shown "
            "where the interval of the difference excludes 0. The intervals do not "
            "cover the randomness of training itself, nor are they adjusted for the "
            "number of comparisons.",
        )
    )


def _provenance(report: Report) -> str:
    lists = (
        ("Versions", "package", "version", report.versions, str),
        ("Seeds", "what for", "seed", report.seeds, str),
        ("Times", "stage", "seconds", report.seconds, lambda s: f"{s:,.1f}"),
    )
    parts = [
        page.simple_table(name, (left, right), [(k, show(v)) for k, v in data.items()])
        for name, left, right, data, show in lists
        if data
    ]
    out = f'<div class="cols">{"".join(parts)}</div>\n' if parts else ""
    if report.goodput:
        out += _goodput(report.goodput)
    for name, config in report.configs.items():
        text = config if isinstance(config, str) else json.dumps(config, indent=2)
        body = f'<pre tabindex="0">{html.escape(text)}</pre>'
        out += page.details(f"Configuration: {name}", body)
    return out


def _goodput(runs: Mapping[str, Mapping]) -> str:
    """What each run's time went to, and the share that made new steps."""
    kinds = list(next(iter(runs.values()))["seconds"])
    rows = [
        (
            name,
            f"{run['goodput']:.0%}",
            *(f"{run['seconds'][kind]:,.1f}" for kind in kinds),
            str(run["sessions"]),
        )
        for name, run in runs.items()
    ]
    heads = ("run", "goodput", *(k.replace("_", " ") for k in kinds), "sessions")
    return page.simple_table("Where the seconds of each run went", heads, rows)
