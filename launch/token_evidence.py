"""What CheXmix's demo shows besides the probes: filled-in X-rays, reports, retrieval.

All from the test X-rays of pretraining, whose reports are there, and the probe's, whose
lung masks are.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from launch import results
from launch.curricula.stage import training
from pacx_jax.encoders.generator import Generator
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import generation, inpainting
from pacx_jax.input import sources

LOSSES = {
    "{}, images": {"image": "train", "val/image": "validation"},
    "{}, reports": {"text": "train", "val/text": "validation"},
}
NAMES = {"causal": "Causal stage", "masked": "Masked stage",
         "continued": "Causal, continued"}  # fmt: skip
SHARES, SHOWN, MOST = (0.5, 0.9), 4, 200
TOLD = {
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "label_f1_micro": "F1 of 14 labels",
    "label_f1_macro": "mean over labels",
    "label_f1_absent": "F1 of denials",
}


def curves(target: pathlib.Path) -> dict:
    """Losses of both modalities, as `report.Report` shows them."""
    found = {}
    for panel, shown in LOSSES.items():
        for arm, name in NAMES.items():
            found |= results.curves(target, [arm], shown, panel.format(name))
    return found


def opened(target: pathlib.Path, folder: str, split: str):
    """One split of one of the demo's prepared sets."""

    class data:
        source, path = "prepared", str(target / "data" / "prepared" / folder)

    return sources.open_source(data, split)


def painter(workdir: pathlib.Path, model: Generator) -> Callable:
    """A masked autoencoder's run as a function that fills in the X-rays of `model`."""
    autoencoder, why = inpainting.with_decoder(str(workdir))
    if autoencoder is None:
        raise PacxError(f"{workdir}: {why}")
    fill = inpainting.decoder(autoencoder, model.batch_size)
    channels = autoencoder.architecture.get("channels", 3)

    def paint(images, hidden):
        grey = images.mean(-1, keepdims=True).astype(np.uint8)
        return fill(grey.repeat(channels, -1), hidden).mean(-1, keepdims=True)

    return paint


def gather(
    target: pathlib.Path, models: Sequence[Generator], split: str
) -> tuple[dict, list[dict], list[dict]]:
    """Fields of `report.Report`, and rows of `generation.inpainting` and of reports.

    Args:
      models: trainings of two stages, beside each of which stands one of the MAE.
    """
    told, train, probe = (
        generation.read(models[0], opened(target, folder, which), MOST)
        for folder, which in (
            ("mimic_cxr", split),
            ("mimic_cxr", "train"),
            ("probe", split),
        )
    )
    mean_image = np.mean(train.images, axis=0, dtype=np.float64) / 255
    maes = [painter(target / training("mae", k), m) for k, m in enumerate(models)]
    rows = [
        {"set": name} | row
        for name, studies in (("with reports", told), ("with masks", probe))
        for share in SHARES
        for row in generation.inpainting(
            models, studies, mean_image, share, others={"MAE": maes}
        )
    ]
    scored, texts = generation.written_reports(models, told, train, (0.0, *SHARES))
    scores = {
        f"{row['written_by']}, {row['share']:.0%} hidden": {"studies": row["pairs"]}
        | {name: row[key] for key, name in TOLD.items()}
        for row in scored
    }
    found = [
        {"encoder": "CheXmix", "target": row.pop("what"), "n": row.pop("n")} | row
        for row in generation.retrieval(models[0], told)
    ]
    pictures, names = painted(models[0], told)
    return (
        {
            "reconstructions": pictures,
            "reconstructed": names,
            "texts": texts[:SHOWN],
            "text_scores": scores,
            "retrieval": found,
        },
        rows,
        scored,
    )


def painted(model: Generator, studies) -> tuple[list[tuple], list[str]]:
    """Input, visible part and filled-in X-ray of some studies, with the report too."""
    n, side = min(SHOWN, len(studies.images)), model.grid
    x, texts = studies.images[:n], studies.texts[:n]
    hidden = generation.hidden_patches(n, side, 0.25, "block")
    gone = generation.pixels_of(hidden, model.image_size)
    seen = np.where(gone[..., None], 128, x)
    rows, names = [], []
    for how, given in (("", None), (", and its report", texts)):
        filled = np.uint8(np.round(255 * model.paint(x, hidden, given)))
        for i in range(n):
            each = (x[i], seen[i], filled[i])
            rows.append(tuple(np.uint8(image).repeat(3, -1)[..., :3] for image in each))
            names.append(f"X-ray {i + 1}{how}")
    return rows, names


def lines(rows: Sequence[dict]) -> list[str]:
    """L1, PSNR and SSIM of hidden pixels as text."""
    head = f"{'filled in by':<20}{'set':<15}{'where':<10}{'hidden':>7}"
    text = [
        "Hidden pixels: L1, PSNR and SSIM, and the model's L1 less this one's "
        f"({_covered(rows)})",
        head,
    ]
    for row in rows:
        cells = "".join(f"   {_cell(row[name])}" for name in generation.SCORES)
        if "model_less" in row:
            cells += f"   {_cell(row['model_less']['l1'])}"
        text.append(
            f"{row['filled_by']:<20}{row['set']:<15}{row['where']:<10}"
            f"{row['share']:>7.0%}{cells}"
        )
    return text


def report_lines(rows: Sequence[dict]) -> list[str]:
    """F1 of written reports as text, and how far the model is from each floor."""
    text = [
        f"Reports: F1 of 14 labels ({_covered(rows)}), and the model's less this one's"
    ]
    for row in rows:
        less = row.get("model_less")
        text.append(
            f"{row['written_by']:<24}{row['share']:>5.0%} hidden   {_cell(row['f1'])}"
            + (f"   {_cell(less['f1'])}" if less else "")
        )
    return text


def _covered(rows: Sequence[dict]) -> str:
    several = any(row["trainings"] > 1 for row in rows)
    return "95% intervals over patients" + (" and trainings" if several else "")


def sentences(rows: Sequence[dict]) -> list[str]:
    """A sentence for each set and share of hidden pixels: the L1 of each filler."""
    said: dict[tuple, list[str]] = {}
    for row in rows:
        if row["where"] == "all" and row["l1"]["value"] is not None:
            each = said.setdefault((row["set"], row["share"]), [])
            each.append(f"{row['filled_by']} {_cell(row['l1'])}")
    return [
        f"L1 of hidden pixels, X-rays {name}, {share:.0%} hidden: {', '.join(each)}."
        for (name, share), each in said.items()
    ]


def _cell(found: dict) -> str:
    if found["value"] is None:
        return "undefined"
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**found)
