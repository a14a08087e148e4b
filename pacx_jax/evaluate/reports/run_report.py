"""The report of any run: one self-contained HTML file.

  pacx report --workdir=runs/mae --out=report.html
  pacx report --workdir=runs/a --compare=runs/b --compare=runs/c --out=report.html
  pacx report --workdir=runs/probe --out=report.html --figures=figures

shows what the workdirs hold: curves, speed, reconstructions, attention, scores on
held-out patients, what was unreadable, and in which fields configurations differ. It
holds X-rays of the run's validation split; --examples=0 leaves all of them out.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from pacx_jax import cli, files
from pacx_jax.errors import PacxError
from pacx_jax.evaluate.reports import (
    page,
    run_curves,
    run_facts,
    run_figures,
    run_files,
    run_images,
    run_parts,
    run_retrieval,
    run_scores,
)
from pacx_jax.evaluate.reports.run_files import Run
from pacx_jax.evaluate.reports.run_parts import Part
from pacx_jax.stores import staging


def gather(runs: Sequence[Run], examples: int = 4, images: str = "") -> list[Part]:
    """The parts of the page.

    Args:
      runs: the run, then those that it is compared with.
      examples: X-rays to show attention and retrieval on; 0 leaves out all X-rays.
      images: a folder of X-rays for the attention; "" takes the run's own data.
    """
    pictures = []
    if examples:
        found, why = None, ""
        try:
            found = run_images.xrays(runs[0], examples, images)
        except (PacxError, FileNotFoundError) as error:
            why = f"No X-ray to look at: {error}."
        pictures = [
            run_images.reconstructions(runs),
            run_images.rollouts(runs, found, why),
            run_retrieval.retrieval(runs, examples),
        ]
    return [
        run_facts.facts(runs),
        *run_curves.parts(runs),
        *pictures,
        *scores(runs),
        run_facts.bad_steps(runs),
        run_facts.quarantine(runs),
        run_facts.configurations(runs),
    ]


def scores(runs: Sequence[Run]) -> list[Part]:
    """The parts on held-out patients; PacxError for an evaluation that is damaged."""
    try:
        return run_scores.parts(runs)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        named = ", ".join(f"{run.path}/evaluation_*.json" for run in runs)
        raise PacxError(
            f"{named}: not as --evaluate writes it ({error!r}); evaluate again, or "
            "delete that file"
        ) from error


def render(runs: Sequence[Run], parts: Sequence[Part]) -> str:
    """The page as HTML text."""
    stages = list(dict.fromkeys(run.config.objective for run in runs))
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    if len(stages) > 1:
        notes.append(
            f"The runs are of other stages ({', '.join(stages)}): only what they share "
            "is drawn together."
        )
    simulated = [run.name for run in runs if run.config.data.get("simulated", False)]
    title = f"Report of {' and '.join(run.name for run in runs)}"
    return page.render(
        "run.html.j2",
        title,
        runs=list(zip(runs, run_parts.COLOURS, strict=False)),
        parts=[(run_parts.slug(part.title), part) for part in parts],
        notes=[run_facts.plain(note) for note in notes],
        simulated=simulated,
        pictured=any(part.pictures for part in parts),
    )


def save_figures(parts: Sequence[Part], folder: pathlib.Path) -> int:
    """Writes every figure as PNG, SVG and PDF; returns how many figures there are."""
    saved = set()
    for part in parts:
        found = [(c.title, c.figure) for c in (*part.charts, *part.folded)]
        if part.pictures:
            found.append((part.title, run_figures.panel(part.pictures)))
        for title, figure in found:
            name = run_parts.slug(title)
            name = run_parts.slug(part.title, title) if name in saved else name
            run_figures.save(figure, folder, name)
            saved.add(name)
    return len(saved)


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = cli.Parser(
        prog="pacx report", description=__doc__, remote=("workdir", "compare", "out")
    )
    add = parser.add_argument
    add("--workdir", required=True, help="of the run")
    add("--compare", nargs="+", action="extend", default=[], help="further workdirs")
    add("--out", default="report.html", help="the HTML file to write (report.html)")
    add("--figures", help="folder for every figure as PNG, SVG and PDF")
    add("--examples", type=int, default=4, help="X-rays to show; 0: none at all")
    add("--images", default="", help="folder of X-rays to show attention on")
    add("--projector", help="folder for TensorBoard's projector: embeddings")
    args = parser.parse_args(argv)
    workdirs = [args.workdir, *args.compare]
    if len(workdirs) > run_parts.MOST:
        raise PacxError(
            f"--compare: {len(workdirs)} runs; compare at most {run_parts.MOST} at once"
        )
    if not 0 <= args.examples <= 32:
        raise PacxError(f"--examples={args.examples}: give a number from 0 to 32")
    if pathlib.Path(args.out).is_dir():
        raise PacxError(f"--out={args.out}: a folder; name a file such as report.html")
    named = run_files.names(workdirs)
    runs = [run_files.read(w, n) for w, n in zip(workdirs, named, strict=True)]
    parts = gather(runs, args.examples, args.images)
    with staging.output(args.out) as target:
        files.write(target, render(runs, parts))
    notes = sum(len(run.notes) for run in runs)
    told = f", {notes} notes on what cannot be read" if notes else ""
    print(f"{args.out}: {len(runs)} run(s){told}")
    if args.figures:
        count = save_figures(parts, pathlib.Path(args.figures))
        print(
            f"{args.figures}: {count} figures, each as {', '.join(run_figures.FORMATS)}"
        )
    if args.projector:
        print(run_retrieval.project(runs[0], pathlib.Path(args.projector)))


if __name__ == "__main__":
    sys.exit(main())
