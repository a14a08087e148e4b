"""Makes tables 1 to 3 and figures 2 to 5 of PaCX-MAE, beside the published numbers.

  python launch/reproduce.py --data=prepared --out=runs/paper --encoder=ecg=ecgfounder
  python launch/reproduce.py --data=prepared --out=runs/paper --encoder=mae=runs/mae \\
      --encoder=pacx=runs/distill --encoder=imagenet=vitb
  python launch/reproduce.py --data=runs/demo/data/prepared --out=runs/paper --cohort

DATA holds prepared sets, each under its builder's name. What is not there is left out
and named, with the command that makes it. Encoders are trained as a study trains them
(--seeds of each, --on=local, slurm or jobset), unless --encoder names a folder, in
which {seed} stands for the training seed.
--measure only measures those that are there. --cohort fills with the simulated patients
what their sets can fill, by the small recipes. --tiny does everything with two steps,
to see that it works.

OUT/reproduction.md has the tables, reproduction.json every number with its encoders,
fingerprints and sets. The same command goes on where it stopped.
Exit code: 0, 1 where runs failed, 75 where it was stopped.
"""

from __future__ import annotations

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import spreads, studies, study, sweep  # noqa: E402
from launch.paper import rows  # noqa: E402
from launch.sweep_runs import collect  # noqa: E402
from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402

PUBLISHED = pathlib.Path(__file__).parent / "paper" / "published.json"
ARMS = tuple(dict.fromkeys((*rows.ENCODERS, *rows.ABLATIONS)))
GIVEN = (*ARMS, "ecg", "labs")
TINY = ("total_steps=2", "log_every=1", "eval_every=2", "save_every=2",
        "optim.warmup_steps=1", "images_every=0")  # fmt: skip


def encoders_given(flags, seeds) -> dict[str, str]:
    """--encoder=NAME=DIR -> NAME -> DIR, which may have {seed} in it."""
    found = {}
    for text in flags.encoder:
        name, _, folder = text.partition("=")
        if name not in GIVEN or not folder:
            raise PacxError(f"--encoder={text}: give NAME=DIR, of {', '.join(GIVEN)}")
        if name in found:
            raise PacxError(f"--encoder={text}: {name} is given twice")
        for each in trainings_of(folder, seeds):
            if not pathlib.Path(each).is_dir():
                more = f" {each}" if each != folder else ""
                raise PacxError(f"--encoder={text}: no such folder{more}")
        found[name] = folder
    return found


def trainings_of(folder: str, seeds) -> list[str]:
    """The folders of an encoder that is given: one, or by {seed} one a training."""
    return list(dict.fromkeys(folder.replace("{seed}", str(seed)) for seed in seeds))


def train(flags, common, given, seeds) -> tuple[int, dict[str, list[str]], list[str]]:
    """(exit code, arm -> folders of what is trained and finished, lines to tell)."""
    target = flags.out.rstrip("/")
    asked, notes = rows.study(flags.data, flags.cohort, given)
    if asked is None:
        return 0, {}, notes
    levels = study.plan(asked, f"{target}/runs", seeds, common)
    everything = [run for runs in levels for run in runs]
    state = pathlib.Path(target) / "runs"
    code = 0
    for runs in levels:
        left = [run for run in runs if run.todo()]
        if not left or flags.measure:
            continue
        print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished")
        code = sweep.start(left, state / "sweep", flags, runs, flags.out)
        if flags.on != "local" and not flags.dry_run:
            print("give the same command again when these have ended")
            raise SystemExit(code)
        if code == sweep.STOPPED:
            raise SystemExit(code)
    if flags.dry_run:
        return code, {}, notes
    collect(everything, state, [])
    found: dict[str, list[str]] = {}
    for run in everything:
        if not run.todo():
            found.setdefault(run.fields["arm"], []).append(run.workdir)
        else:
            notes.append(f"{run.name} is not finished: {state}/logs/{run.name}.log")
    whole = {a: len(seeds[:1] if asked.arms[a].once else seeds) for a in asked.arms}
    return code, {a: x for a, x in found.items() if len(x) == whole[a]}, notes


def write(flags, given, trained: dict[str, list[str]], notes) -> str:
    """Measures, and writes reproduction.json and reproduction.md; returns the text."""
    # JAX comes with these, which takes seconds.
    from launch.paper import beyond, figures, measure
    from pacx_jax import load_encoder
    from pacx_jax.evaluate import features

    out = pathlib.Path(flags.out)
    folders = {a: given.get(a, trained.get(a, [])) for a in ARMS}
    opened = {a: [load_encoder(x) for x in each] for a, each in folders.items() if each}
    folders = {a: folders[a] for a in opened}
    prints = {a: [features.fingerprint(e) for e in each] for a, each in opened.items()}
    for a, each in prints.items():
        studies.check_trainings(dict(zip(folders[a], each, strict=True)))
    if not opened:
        print(*notes, sep="\n")
        raise PacxError(
            f"no encoder to measure, and none can be trained from {flags.data}, for "
            "the reasons above"
        )
    fewer = (2, 50) if flags.tiny else (5, 1000)
    setting = measure.Setting(flags.data, out, opened, folders, *fewer)
    published = files.read_json(PUBLISHED)
    asked, found, there = rows.of(flags.cohort), {}, []
    for row in asked:
        if not (pathlib.Path(flags.data) / row.folder).is_dir():
            notes.append(f"{row.name}: {row.missing(flags.data)}")
            continue
        there.append(row)
        try:
            found[row.name] = _measured(setting, row, trained)
        except PacxError as e:
            notes.append(f"{row.name}: {e}")
            continue
        for arm, why in found[row.name]["refused"].items():
            notes.append(f"{row.name}, {rows.NAMES[arm]}: {why}")
        notes += [f"{row.name}, {told}" for told in found[row.name]["told"]]
    gains = [
        {"a": "pacx", "b": "mae", "labels": name, "fraction": float(fraction)}
        | {"trainings": cell["trainings"]}
        for name, each in found.items()
        for fraction, cell in each["gains"].items()
    ]
    notes += spreads.notes(gains, "reproduce", spreads.read())
    labelled = [row for row in there if row.kind != "masks" and row.name in found]
    masks = [row for row in there if row.kind == "masks"]
    table2, drawn, inside = None, {}, {}
    distilled = next((x[0] for a, x in folders.items() if a == "pacx"), "")
    if distilled and (pathlib.Path(distilled) / "done.json").is_file():
        try:
            table2 = beyond.aligned(setting, distilled)
            told = [f"{rows.NAMES[a]}: {w}" for a, w in table2["refused"].items()]
            notes += [f"table 2, {each}" for each in (*told, *table2["told"])]
        except PacxError as e:
            notes.append(f"table 2: {e}")
    else:
        notes.append(
            "table 2 takes the workdir of a distillation, which names its teachers: "
            "give one by --encoder=pacx=DIR, or let it be trained"
        )
    if {"mae", "pacx"} <= set(opened):
        for row in masks:
            try:
                inside[row.name] = beyond.inside_masks(setting, row)
            except PacxError as e:
                notes.append(f"attention inside masks, {row.name}: {e}")
    apart = {}
    # The cohort's rows share a set, and MedMod's frontal films are some of its films.
    separate = {row.folder: row for row in labelled if row != rows.FRONTAL}
    if len(separate) > 1:
        apart = beyond.told_apart(setting, list(separate.values()))
    drawn = _figures(flags, figures, setting, labelled, found, published, notes)
    everything = {
        "published": published,
        "encoders": {
            a: [
                {"folder": f, "fingerprint": p, "config": f"{f}/config.json"} | _step(f)
                for f, p in zip(folders[a], prints[a], strict=True)
            ]
            for a in folders
        },
        "decoders": {
            f"{row.name}, {rows.NAMES[a]}": [
                {"folder": f, "config": f"{f}/config.json"} | _step(f)
                for f in trained.get(rows.decoder(row, a), [])
            ]
            for row in masks
            for a in rows.ENCODERS
        },
        "sets": {row.name: f"{flags.data}/{row.folder}" for row in there},
        "rows": found,
        "subsets": setting.subsets,
        "table2": table2,
        "attention": inside,
        "sources": apart,
        "figures": drawn,
        "notes": notes,
    }
    files.write(out / "reproduction.json", json.dumps(everything, indent=1) + "\n")
    text = _text(flags, asked, everything)
    files.write(out / "reproduction.md", text)
    return text


def _text(flags, asked: tuple[rows.Row, ...], everything: dict) -> str:
    """The page, in Markdown."""
    from launch.paper import page

    encoders, published = everything["encoders"], everything["published"]
    seeds = sorted({len(each) for each in encoders.values()})
    about = (
        "Ours with 95% intervals over test patients, label subsets and, with several "
        f"training seeds, trainings ({' or '.join(map(str, seeds))} of each here). "
        "With one, the interval lacks the randomness of training. Probes are fitted "
        "exactly on cached features (docs/evaluation.md). The published numbers are of "
        "one seed, without intervals."
    )
    if flags.cohort:
        about = (
            "The patients are simulated, and so are the rows: the published numbers "
            f"are of other data and stand there for the layout alone.\n\n{about}"
        )
    found, drawn = everything["rows"], everything["figures"]
    missing = "\n".join(f"- {note}" for note in dict.fromkeys(everything["notes"]))
    parts = {
        "Table 1": page.table1(asked, found, published),
        "Table 2": page.table2(everything["table2"], published),
        "Table 3": page.table3(asked, found, published),
        **{name: f"![{name}]({file})" for name, file in drawn.items()},
        "Figure 3: PaCX − MAE, AUROC": page.figure3(found, published),
        "What stands behind each row": page.counts(found, everything["subsets"]),
    }
    if everything["attention"]:
        parts["Attention inside masks"] = page.attention(everything["attention"])
    if everything["sources"]:
        parts["Are the sets told apart?"] = page.sources(everything["sources"])
    parts["Encoders"] = page.encoders(encoders | everything["decoders"])
    parts["What is missing"] = missing or "Nothing."
    sections = [f"## {name}\n\n{body}" for name, body in parts.items()]
    return "\n\n".join(["# PaCX-MAE: tables and figures", about, *sections]) + "\n"


def _step(folder: str) -> dict[str, int]:
    """The step of a run's checkpoint; {} of an exported folder."""
    done = pathlib.Path(folder) / "done.json"
    return {"step": files.read_json(done)["step"]} if done.is_file() else {}


def _measured(setting, row: rows.Row, trained: dict[str, list[str]]) -> dict:
    from launch.paper import measure

    if row.kind == "masks":
        decoders = {a: trained.get(rows.decoder(row, a), []) for a in rows.ENCODERS}
        decoders = {a: each for a, each in decoders.items() if each}
        if not decoders:
            raise PacxError("no decoder was trained for it")
        return measure.masked(setting, row, decoders)
    fractions = {}
    for arm in setting.encoders:
        low = row.name in rows.FIGURE3 and arm in ("mae", "pacx")
        if arm in rows.ENCODERS or row.name in rows.TABLE3:
            fractions[arm] = rows.FRACTIONS if low else (1.0,)
    return measure.classified(setting, row, fractions)


def _figures(flags, figures, setting, labelled, found, published, notes) -> dict:
    """Draws what can be drawn: name -> file in OUT."""
    out, drawn = pathlib.Path(flags.out), {}
    mae = next(iter(setting.folders.get("mae", ())), "")
    if labelled and (pathlib.Path(mae) / "checkpoints").is_dir() and mae:
        films = figures.films_of(flags.data, labelled[0], "test", 4, False)
        figures.reconstructions(out / "figure2.png", mae, films)
        drawn["Figure 2: film, what the MAE sees, what it fills in"] = "figure2.png"
    else:
        notes.append("figure 2 takes the MAE's workdir and a labelled set")
    low = {n: found[n]["cells"] for n in rows.FIGURE3 if n in found}
    if low:
        figures.low_data(out / "figure3.svg", low, published["figure3"])
        drawn["Figure 3: labels and AUROC; dotted: published"] = "figure3.svg"
    if labelled and {"mae", "pacx"} <= set(setting.encoders):
        films = figures.films_of(flags.data, labelled[0], "test", 3, True)
        figures.attention(out / "figure4.png", setting.encoders, films)
        drawn[f"Figure 4: MAE, PaCX, PaCX less MAE; {labelled[0].name}"] = "figure4.png"
        films = [
            figures.films_of(flags.data, row, "test", 1, True)[0] for row in labelled
        ]
        figures.attention(out / "figure5.png", setting.encoders, films)
        names = ", ".join(row.name for row in labelled)
        drawn[f"Figure 5: the same, a film of each of {names}"] = "figure5.png"
    return drawn


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--data", required=True, help="folder of the prepared sets")
    add("--out", default="runs/paper", help="folder to write")
    add("--encoder", action="append", default=[], help="NAME=DIR, repeatable")
    add("--seeds", type=int, default=1, help="training seeds of each encoder")
    add("--first_seed", type=int, default=1)
    add("--cohort", action="store_true", help="rows of the simulated patients")
    add("--tiny", action="store_true", help="two steps of everything")
    add("--measure", action="store_true", help="measure what there is, train nothing")
    sweep.add_flags(parser)
    flags, common = parser.parse_known_args(argv)
    if wrong := [a for a in common if not a.startswith("--config.")]:
        raise PacxError(f"unknown argument {wrong[0]!r}: see --help")
    for name, least in (("seeds", 1), ("jobs", 1), ("gpus_per_job", 0), ("hosts", 1)):
        if getattr(flags, name) < least:
            raise PacxError(f"--{name}={getattr(flags, name)}: give at least {least}")
    if not pathlib.Path(flags.data).is_dir():
        raise PacxError(
            f"--data={flags.data}: no such folder; data/README.md says how to prepare "
            "sets, and bash launch/demo.sh makes simulated ones"
        )
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    given = encoders_given(flags, seeds)
    if flags.tiny:
        common = [*(f"--config.{field}" for field in TINY), *common]
    code, trained, notes = train(flags, common, given, seeds)
    if flags.dry_run:
        return code
    given = {a: trainings_of(folder, seeds) for a, folder in given.items()}
    print(write(flags, given, trained, notes), end="")
    return code


if __name__ == "__main__":
    sys.exit(main())
