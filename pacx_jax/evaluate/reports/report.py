"""The comparison's report: one self-contained HTML file without scripts or links.

`write_report(path, Report(...))` states what was found, effects and their absence
alike, and then shows the evidence. The same Report gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence

from pacx_jax import files
from pacx_jax.evaluate import probe
from pacx_jax.evaluate.comparison import MIN_TRAININGS
from pacx_jax.evaluate.reports import figures, page, tables
from pacx_jax.evaluate.reports.tables import Arm
from pacx_jax.evaluate.reports.words import PACX, Words


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything the report shows, as plain data; it names what is empty.

    Attributes:
      words: the method's; they say which sections there are.
      title: of the page.
      simulated: True where the patients are simulated; the page begins with that.
      headline: further sentences for the first paragraph, after the findings.
      summary: `Comparison.summary`.
      table: `Comparison.table`.
      pairs: `Comparison.pairs`; those of label groups are shown as controls.
      arms: arm -> how it is shown; also the order of the rows.
      curves: "panel/series" -> (steps, values); series of a panel share a chart.
      alignment: as `curves`.
      reconstructions: (input, masked, reconstruction) uint8 images, (h, w[, 3]).
      reconstructed: what each is, such as "study 1, PA"; empty: they are numbered.
      texts: of each study, names and texts: "true report", "from PA", ...
      text_scores: "from PA" -> {metric: value}, alike for all.
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

    words: Words = PACX
    title: str = "PaCX-MAE"
    simulated: bool = True
    headline: Sequence[str] = ()
    summary: Sequence[Mapping] = ()
    table: Sequence[Mapping] = ()
    pairs: Sequence[Mapping] = ()
    arms: Mapping[str, Arm] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    alignment: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    reconstructions: Sequence[tuple] = ()
    reconstructed: Sequence[str] = ()
    texts: Sequence[Mapping[str, str]] = ()
    text_scores: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
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
    pairs = [row for row in report.pairs if row["group"]]
    order = tables.arm_order(report.table, report.arms)
    compared = list(dict.fromkeys((row["a"], row["b"]) for row in pairs))
    measures = dict.fromkeys(key for row in report.retrieval for key in row)
    return page.render(
        "report.html.j2",
        report.title,
        report=report,
        words=report.words,
        figures=figures,
        probe=probe,
        min_trainings=MIN_TRAININGS,
        grid=", ".join(f"{c:g}" for c in probe.C_GRID),
        zip=zip,
        lead=tables.lead(report.summary, report.words),
        by_count=tables.by_count(report.table),
        everything=max([1.0, *(row["fraction"] for row in report.table)]),
        order=order,
        arms={
            arm: report.arms.get(arm, Arm(arm))
            for arm in dict.fromkeys([*order, *itertools.chain(*compared)])
        },
        cells=tables.cells(report.table),
        compared=compared,
        pairs={(r["a"], r["b"], r["labels"], r["fraction"]): r for r in pairs},
        panels=_panels(report.curves),
        aligned=_panels(report.alignment),
        measures=[k for k in measures if k not in ("encoder", "target", "n")],
        configs={
            name: config if isinstance(config, str) else json.dumps(config, indent=2)
            for name, config in report.configs.items()
        },
    )


def _panels(curves: Mapping[str, tuple]) -> dict[str, dict[str, tuple]]:
    """Charts and their lines, of "panel/series" or of a panel's only series."""
    panels: dict[str, dict[str, tuple]] = {}
    for name, values in curves.items():
        panel, _, line = name.partition("/")
        panels.setdefault(panel, {})[line or panel] = values
    return panels
