"""The page: the paper's tables with ours beside, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.paper.rows import ABLATIONS, ENCODERS, FIGURE3, FRACTIONS, NAMES, TABLE3

# Of table 2: what the probe is fitted to in the place of an encoder's embeddings.
FLOORS = {"shuffled": "pairs shuffled", "random": "noise"}
METRICS = {
    "auroc": "AUROC",
    "f1": "F1",
    "iou": "IoU",
    "dice": "Dice",
    "cosine_centred": "cosine, centred",
    "cosine": "cosine, raw",
    "r2": "R²",
}
MISSING = "–"


def number(cell: Mapping | None, signed: bool = False) -> str:
    """A cell as text: 0.803 (0.79 to 0.82), or a dash; differences have a sign."""
    if not cell or cell["value"] is None:
        return MISSING
    sign, places = "+" * signed, 3 if signed else 2
    text = f"{cell['value']:{sign}.3f}"
    if cell["low"] is not None:
        text += f" ({cell['low']:{sign}.{places}f} to {cell['high']:{sign}.{places}f})"
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of(result: Mapping, arm: str, fraction: float, metric: str) -> Mapping | None:
    cells = result.get("cells", {}).get(arm, {})
    return cells.get(str(fraction), {}).get(metric)


def table1(rows, found: Mapping, published: Mapping) -> str:
    """Every data set by ImageNet, MAE and PaCX, with the published numbers."""
    head = ["Data set", "metric", *(NAMES[a] for a in ENCODERS)]
    head += [f"{NAMES[a]}, paper" for a in ENCODERS]
    lines = []
    for row in rows:
        for i, metric in enumerate(row.metrics):
            theirs = published["table1"].get(row.name, {}).get(metric, [None] * 3)
            ours = [
                number(_of(found.get(row.name, {}), arm, 1.0, metric))
                for arm in ENCODERS
            ]
            name = row.name + (f" ({row.stand_in}, simulated)" * bool(row.stand_in))
            cells = ["" if i else name, METRICS[metric], *ours]
            shown = [MISSING if x is None else f"{x:.3f}" for x in theirs]
            lines.append([*cells, *shown])
    return table(head, lines)


def table2(found: Mapping | None, published: Mapping) -> str:
    """Alignment with ECGs and laboratory values."""
    head = ["", *(NAMES[a] for a in ENCODERS)]
    head += [*FLOORS.values(), *(f"{NAMES[a]}, paper" for a in ENCODERS)]
    lines = []
    for m, what in (("ecg", "ECG"), ("labs", "Labs")):
        for name in (
            "cosine_centred",
            "cosine",
            "r2",
            "recall@1",
            "recall@5",
            "recall@10",
        ):
            ours, each = [], (found or {}).get(m, {})
            for arm in ENCODERS:
                cell = each.get(arm, {}).get(name)
                text = number(cell)
                if cell and "hits" in cell:
                    text += f", {cell['hits']:.4g} of {cell['n']}"
                ours.append(text)
            ours += [number(each.get(floor, {}).get(name)) for floor in FLOORS]
            theirs = published["table2"][m].get(name, [None] * 3)
            shown = [MISSING if x is None else f"{x:.3f}" for x in theirs]
            lines.append([f"{what}: {METRICS.get(name, name)}", *ours, *shown])
        chance = [
            f"{c['chance']:.3f}"
            for a in list(each.values())[:1]
            for c in a.values()
            if "chance" in c
        ]
        if chance:
            rest = [""] * (len(head) - 2)
            lines.append([f"{what}: chance at 1, 5, 10", ", ".join(chance), *rest])
    return table(head, lines)


def table3(rows, found: Mapping, published: Mapping) -> str:
    """Ablations of Stage 2."""
    full = {**NAMES, "pacx": "Full"}
    head = ["Data set", "metric", *(full[a] for a in ABLATIONS)]
    head += [f"{full[a]}, paper" for a in ABLATIONS]
    lines = []
    for row in rows:
        if row.name not in TABLE3:
            continue
        for i, metric in enumerate(row.metrics):
            theirs = published["table3"][row.name][metric]
            ours = [
                number(_of(found.get(row.name, {}), arm, 1.0, metric))
                for arm in ABLATIONS
            ]
            cells = ["" if i else row.name, METRICS[metric], *ours]
            lines.append([*cells, *(f"{x:.3f}" for x in theirs)])
    return table(head, lines)


def figure3(found: Mapping, published: Mapping) -> str:
    """PaCX - MAE by the share of the labels."""
    head = ["Data set", *(f"{f:.0%}" for f in FRACTIONS)]
    head += [f"{f:.0%}, paper" for f in FRACTIONS]
    lines = []
    for name in FIGURE3:
        gains = found.get(name, {}).get("gains", {})
        ours = [number(gains.get(str(f)), True) for f in FRACTIONS]
        theirs = published["figure3"].get(name, {}).get("gain", [])
        lines.append([name, *ours, *(f"{x:+.3f}" for x in theirs)])
    return table(head, lines)


def attention(found: Mapping[str, Mapping]) -> str:
    """The share of attention inside masks, a row a set."""
    head = ["Masks", "MAE", "PaCX", "PaCX − MAE", "area of the masks", "images"]
    head.append("trainings")
    lines = []
    for name, each in found.items():
        shares = each["shares"]
        columns = ("mae", "pacx", "pacx - mae", "mask_area")
        cells = [number(shares[c], " - " in c) for c in columns]
        counts = str(shares["mask_area"]["n"]), str(each["trainings"])
        lines.append([name, *cells, *counts])
    return table(head, lines)


def sources(found: Mapping[str, Mapping]) -> str:
    """The table of probes that guess the data set from the embedding, in Markdown."""
    head = ["Encoder", "balanced accuracy", "chance", "AUROC", "trainings"]
    lines = [
        [
            NAMES.get(arm, "Pixels 24x24"),
            number(row["balanced_accuracy"]),
            f"{row['chance']:.3f}",
            number(row["auroc"]),
            str(row["trainings"]),
        ]
        for arm, row in found.items()
    ]
    return table(head, lines)


def counts(found: Mapping[str, Mapping], subsets: int) -> str:
    """How many test images, patients, trainings and label subsets a row is over."""
    head = ["Data set", "test images", "test patients", "trainings", "label subsets"]
    lines = []
    for name, each in found.items():
        cells = [
            cell
            for of_arm in each["cells"].values()
            for of_fraction in of_arm.values()
            for cell in of_fraction.values()
        ]
        if not cells:
            continue
        below = f"{subsets} below 100%, 1 at 100%"
        trainings = sorted({cell["trainings"] for cell in cells})
        lines.append(
            [
                name,
                str(each["sizes"]["test"]),
                str(cells[0]["patients"]),
                " or ".join(map(str, trainings)),
                below if name in FIGURE3 else "1",
            ]
        )
    return table(head, lines)


def encoders(found: Mapping[str, Sequence[Mapping]]) -> str:
    """Every encoder and decoder: its folder, with config.json, step and fingerprint."""
    lines = [
        [
            NAMES.get(arm, arm),
            f"`{one['folder']}`",
            f"{one['step']:,}" if "step" in one else MISSING,
            f"`{one['fingerprint']}`" if "fingerprint" in one else MISSING,
        ]
        for arm, each in found.items()
        for one in each
    ]
    return table(["Encoder", "folder", "step", "fingerprint"], lines)
