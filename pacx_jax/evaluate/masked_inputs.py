"""How much an encoder still knows of an X-ray from which patches are removed.

  python -m pacx_jax.evaluate.masked_inputs MAE=runs/mae PaCX=runs/distill \\
      --data=prepared/probe --out=runs/masked

For each encoder and share of removed patches: the AUROC of a linear probe on its frozen
embedding, with 95% intervals over patients; and of encoders whose run has a decoder of
pixels, how well it fills in what was removed. The folder --out gets masked_inputs.json
and masked_inputs.txt. docs/chexmix.md says what is compared.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import ml_collections
import numpy as np

from pacx_jax import cli, files
from pacx_jax.encoders import kinds, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import comparison, features, inpainting, probe
from pacx_jax.evaluate.masked_embeddings import embeddings, rows_of
from pacx_jax.input import sources
from pacx_jax.run import host_memory, overlap

RATIOS = (0.0, 0.25, 0.5, 0.75, 0.9)
PROBES = ("unmasked", "masked")


def curve(
    arms: dict[str, list[ModelFolder]],
    sets: dict,
    paths: dict[str, list[str]],
    label_names: Sequence[str],
    ratios: Sequence[float] = RATIOS,
    way: str = "unmasked",
    seed: int = 0,
    batch_size: int = 64,
) -> comparison.Comparison:
    """Probes every encoder at every share of removed patches.

    Args:
      arms: name -> encoders, one a training.
      sets: "train" and "test" -> `features.ProbeSet`.
      paths: likewise -> the images' paths.
      ratios: shares that are removed.
      way: what a probe is fitted on: "unmasked" training images once, or "masked" ones,
        at each share anew.
      seed: of masks and resamples.

    Returns:
      Comparison, in which `fraction` is the share of removed patches.
    """
    train, test = sets["train"], sets["test"]
    scores = {}
    for name, folders in arms.items():
        for k, folder in enumerate(folders):
            rows = {s: rows_of(folder, sets[s], paths[s]) for s in sets}

            def of(split, ratio, rows=rows, folder=folder):
                return embeddings(folder, rows[split], ratio, seed, batch_size)

            fitted = None
            for ratio in ratios:
                if fitted is None or way == "masked":
                    z = of("train", ratio if way == "masked" else 0.0)
                    fitted = _fit(z, train)
                found = fitted.predict(of("test", ratio))
                scores[(name, k), ratio] = found[None]  # all labels: one subset
    pairs = [(a, b) for i, a in enumerate(arms) for b in list(arms)[:i]]
    return comparison.compare_arms(
        comparison.by_training(scores),
        test.labels,
        test.mask,
        test.patients,
        label_names,
        {"macro": label_names},
        pairs,
        dict.fromkeys(ratios, len(train.labels)),
        seed=seed,
    )


def _fit(z: np.ndarray, train) -> probe.Probe:
    if not np.isfinite(z).all():
        raise PacxError("an encoder gives embeddings that are not finite")
    return probe.fit(z, train.labels, train.mask, None, train.patients)


def _inpainted(words: Sequence[str], sets: dict, paths: dict, ratios, args):
    """(rows of `inpainting.measure`, encoder -> why it has none)."""
    rows, skipped = [], {}
    for name, folders in read_arms(words).items():
        for path in folders:
            shown = name if len(folders) == 1 else f"{name}={path}"
            model, reason = inpainting.with_decoder(path)
            if model is None:
                skipped[shown] = reason
                continue
            each = {s: rows_of(model, sets[s], paths[s]) for s in sets}
            whose, last = sets["test"].patients, (args.seed, args.batch_size)
            found = inpainting.measure(
                model, each["train"], each["test"], whose, ratios, *last
            )
            rows += [{"encoder": shown} | row for row in found]
    return rows, skipped


def read_arms(words: Sequence[str]) -> dict[str, list[str]]:
    """NAME=FOLDER and FOLDER -> name -> folders; a name's second is a second training.

    >>> read_arms(["a=runs/mae", "a=runs/mae_2", "runs/pacx"])
    {'a': ['runs/mae', 'runs/mae_2'], 'runs/pacx': ['runs/pacx']}
    """
    arms: dict[str, list[str]] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not name or (equals and not path):
            raise PacxError(f"encoder {word!r}: give FOLDER or NAME=FOLDER")
        arms.setdefault(name, []).append(path or name)
    counts = {name: len(paths) for name, paths in arms.items()}
    if len({*counts.values()} - {1}) > 1:
        raise PacxError(f"trainings differ in number ({counts}): give one, or as many")
    return arms


def load_arms(words: Sequence[str]) -> dict[str, list[ModelFolder]]:
    """The encoders that `read_arms` reads; PacxError for one without patches."""
    arms = {}
    for name, paths in read_arms(words).items():
        arms[name] = [model_folder.load(path) for path in paths]
        for path, folder in zip(paths, arms[name], strict=True):
            if folder.kind not in kinds.PATCHES:
                raise PacxError(
                    f"{path} holds a {folder.kind} model: masked inputs are for "
                    "encoders of X-rays that see them as patches"
                )
    return arms


def read_ratios(text: str) -> list[float]:
    """Shares to remove, ascending; PacxError for no numbers in [0, 1)."""
    try:
        ratios = sorted({float(word) for word in text.split(",")})
    except ValueError:
        ratios = [-1.0]
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise PacxError(f"--ratios={text}: give numbers from 0 to below 1, as 0,.5,.9")
    return ratios


def _data(args) -> ml_collections.ConfigDict:
    data = {"source": "prepared", "path": args.data, "namespace": args.namespace}
    config = {"name": "masked_inputs", "data": data}
    config["data"]["allow_overlap"] = args.allow_overlap
    return ml_collections.ConfigDict(config)


def _overlap(config, words: Sequence[str], split: str) -> dict[str, dict]:
    """Whether encoders have seen the test patients; PacxError where that is known."""
    found = {}
    for name, paths in read_arms(words).items():
        for path in paths:
            one = overlap.compare(config, [split], overlap.behind(path))
            found[path] = one
            shared = one["splits"].get(split, {}).get("shared")
            if shared and not one["allowed"]:
                raise PacxError(
                    f"{name}: {shared} {split} patients were in the training of "
                    f"{path}; take other data, or give --allow_overlap (or, if these "
                    "are other people of the same ids, --namespace=NAME)"
                )
    return found


def table(rows: Sequence[dict], ratios: Sequence[float]) -> list[str]:
    """Lines of text: macro AUROC of each encoder by share removed."""
    several = any(row["trainings"] > 1 for row in rows)
    over = "patients and trainings" if several else "patients"
    lines = [f"macro AUROC (95% interval over {over}), by share of patches removed"]
    names = list(dict.fromkeys(row["arm"] for row in rows))
    cells = {(r["arm"], r["fraction"]): r for r in rows if r["labels"] == "macro"}
    wide = max(map(len, names))
    lines.append(" " * wide + "".join(f"{ratio:>22g}" for ratio in ratios))
    for name in names:
        each = [_cell(cells[name, ratio], "auroc") for ratio in ratios]
        lines.append(f"{name:<{wide}}" + "".join(f"{text:>22}" for text in each))
    return lines


def _cell(row: dict, key: str) -> str:
    if row[key] is None or row["low"] is None:
        return "undefined"
    return f"{row[key]:.3f} ({row['low']:.3f}-{row['high']:.3f})"


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.masked_inputs", description=__doc__
    )
    parser.add_argument(
        "encoders",
        nargs="+",
        help="FOLDER or NAME=FOLDER each, a run or an exported or converted folder; "
        "several of one name are its trainings",
    )
    parser.add_argument("--data", required=True, help="prepared set with labels")
    parser.add_argument("--split", default="test", help="split to measure on")
    parser.add_argument("--ratios", default=",".join(f"{r:g}" for r in RATIOS))
    parser.add_argument("--probe", default=PROBES[0], choices=PROBES)
    parser.add_argument("--seed", type=int, default=0, help="of masks and resamples")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--allow_overlap", action="store_true")
    parser.add_argument("--namespace", default="", help="whose the patients' ids are")
    parser.add_argument("--out", required=True, help="folder to write")
    return parser


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(argv)
    host_memory.keep_freed()
    ratios, config = read_ratios(args.ratios), _data(args)
    arms = load_arms(args.encoders)
    seen = _overlap(config, args.encoders, args.split)
    opened = {
        "train": sources.open_source(config.data, "train"),
        "test": sources.open_source(config.data, args.split),
    }
    names = opened["test"].label_names
    if not names:
        raise PacxError(f"--data={args.data} has no labels: masked inputs need some")
    sets = {s: features.read_probe_set(source) for s, source in opened.items()}
    if set(sets["train"].patients) & set(sets["test"].patients):
        raise PacxError(f"{args.data}: train and {args.split} share patients")
    paths = {s: source.paths() for s, source in opened.items()}
    ways = (ratios, args.probe, args.seed, args.batch_size)
    found = curve(arms, sets, paths, names, *ways)
    filled, skipped = _inpainted(args.encoders, sets, paths, ratios, args)
    lines = table(found.table, ratios) + inpainting.lines(filled, skipped)
    lines += [
        f"{path}: overlap unknown: {'; '.join(one['unknown'])}"
        for path, one in seen.items()
        if one["status"] == "unknown"
    ]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    about = vars(args) | {"ratios": ratios, "n": len(sets["test"].labels)}
    report = about | {"auroc": _named(found.table), "pairs": _named(found.pairs)}
    report |= {"inpainting": filled, "no_inpainting": skipped, "overlap": seen}
    files.write_json(out / "masked_inputs.json", report)
    (out / "masked_inputs.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _named(rows: Sequence[dict]) -> list[dict]:
    """Rows of a comparison whose `fraction` is the share removed."""
    return [{"removed": row["fraction"]} | {k: v for k, v in row.items()
             if k not in ("fraction", "subsets")} for row in rows]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
