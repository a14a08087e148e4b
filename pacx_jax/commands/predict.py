"""Gives a classifier's calibrated probabilities of every X-ray under a folder, as CSV.

  pacx predict --model=runs/finetune --images=DIR --out=predictions.csv [--rollout=MAPS]

--model is a finished run of configs/finetune.py or configs/linear_probe.py, what
pacx export --head wrote of one, or the folder of pacx_jax.Classifier.save. The CSV has
a row for each image: `path`, relative to the folder and sorted, then for each label its
probability under the label's name, and LABEL_called, 1 or 0 by the threshold that
--rule chose on validation patients; nothing where it chose none. --rollout writes a PNG
for each image, with the patches that the encoder drew on in colour (ViT only).
"""

from __future__ import annotations

import csv
import math
import pathlib
import sys

import numpy as np

from pacx_jax import cli, embed, files, target
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import rollout, thresholds
from pacx_jax.evaluate.classifier import RULE, Classifier
from pacx_jax.input import images as imageio
from pacx_jax.run import host_memory
from pacx_jax.stores import staging


def write(
    path: pathlib.Path,
    model: Classifier,
    paths: list[str],
    probabilities: np.ndarray,
    rule: str,
) -> None:
    """Writes the CSV of n images: probabilities (n, c), and what `rule` calls."""
    called = model.decide(probabilities, rule)
    head = [f"{name}{end}" for name in model.labels for end in ("", "_called")]
    with files.whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", *head))
        for one, p, decision in zip(paths, probabilities, called, strict=True):
            cells = [
                cell
                for x, d in zip(p, decision, strict=True)
                for cell in (f"{x:.6g}", "" if math.isnan(d) else f"{d:.0f}")
            ]
            writer.writerow((one, *cells))


def write_maps(
    model: Classifier, root: pathlib.Path, paths: list[str], out: pathlib.Path, view
) -> None:
    """Writes OUT/PATH.png for each image: it, in grey, under its rollout in colour."""
    for path in paths:
        image = imageio.decode(root / path, name=path)
        shares = rollout.rollout(model.encoder, [image], view)
        file = out / f"{path}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.whole(file, "wb") as opened:
            rollout.overlay(image, shares[0]).save(opened, "png")


def told(model: Classifier, rule: str) -> list[str]:
    """Lines on labels that are not calibrated, or are not called."""
    if model.calibration is None:
        return [
            "NOT CALIBRATED and nothing called: the model has no calibration.json; "
            "train it again, or fit it by pacx_jax.fit_probe"
        ]
    about = model.calibration["labels"]
    on = model.calibration["chosen_on"]
    lines = []
    if model.calibration.get("unit") == "study":
        lines.append(
            "the model was calibrated on studies of several images; each image is "
            "taken for a study of its own: Classifier.predict(studies=...) joins them"
        )
    if left := [name for name in model.labels if not about[name]["calibrated"]]:
        counts = ", ".join(
            f"{name} ({about[name]['positives']} of {about[name]['known']} positive)"
            for name in left
        )
        why = f"by {on}, of one class there or ranked no better than chance"
        lines.append(f"NOT CALIBRATED and not called, {why}: {counts}")
    if model.task == "multilabel":
        limits = model.thresholds_of(rule)
        each = ", ".join(f"{name} {p:.3f}" for name, p in limits.items())
        lines.append(f"called from ({rule} on {on}): {each or 'nothing'}")
    return lines


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="pacx predict",
        description=__doc__,
        remote=("model", "images", "out"),
    )
    add = parser.add_argument
    add("--model", required=True, help="a finished classifier's run or folder")
    add("--images", required=True, help="folder of JPEG, PNG or DICOM files")
    add("--out", required=True, help="the CSV to write")
    add(
        "--rule",
        default=RULE,
        help=f"{' or '.join(thresholds.RULES)} (default: {RULE})",
    )
    add("--rollout", help="folder for a PNG of each image")
    add("--batch_size", type=int, default=32)
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    text = "list files that cannot be read and go on"
    add("--skip_unreadable", action="store_true", help=text)
    text = "of all images, for an encoder with view embeddings (default: frontal)"
    add("--view", help=text)
    return parser


@cli.command
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    args = _parser().parse_args(argv)
    out = pathlib.Path(args.out)
    if out.suffix != ".csv" or out.is_dir():
        raise PacxError(f"--out {out}: name a file that ends in .csv")
    if args.batch_size < 1:
        raise PacxError(f"--batch_size {args.batch_size}: give at least 1")
    host_memory.keep_freed()
    target.check_backend()
    model = Classifier.load(args.model, args.batch_size, args.dtype)
    if model.task == "multilabel":
        model.thresholds_of(args.rule)  # refuses one that was not chosen
    if args.rollout and model.encoder.kind != "vit":
        raise PacxError(
            f"--rollout={args.rollout}: a {model.encoder.kind} has no attention maps, "
            "only a vit has: leave it out"
        )
    paths, z, skipped = embed.embed_folder(
        model.encoder, args.images, args.skip_unreadable, args.view
    )
    embed.check(
        {"path": np.array(paths, np.str_), "embedding": z}, skipped, args.images
    )
    p = model.probabilities(model.logits(z))
    with staging.output(args.out) as local:
        write(local, model, paths, p, args.rule)
    if args.rollout:
        root = staging.local(args.images, setting="--images")
        write_maps(model, root, paths, pathlib.Path(args.rollout), args.view)
    for message in skipped:
        print(f"skipped: {message}", file=sys.stderr)
    print(*told(model, args.rule), sep="\n")
    maps = f", {len(paths)} maps in {args.rollout}" if args.rollout else ""
    print(f"{len(paths)} predictions of {', '.join(model.labels)} in {args.out}{maps}")


if __name__ == "__main__":
    sys.exit(main())
