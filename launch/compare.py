"""Compares the encoders of a demo: probes, floors, ceiling, retrieval, report.

  python launch/compare.py --target=runs/demo [--split=test] [--ceiling]

Writes comparison.txt, summary.json, comparison.json and report.html into the target.
With --ceiling it only computes, ahead of time, the ECG and lab embeddings of the probe
patients.
"""

from __future__ import annotations

import csv
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from launch import results, spreads  # noqa: E402
from launch.curricula import pacx  # noqa: E402
from launch.curricula.stage import training  # noqa: E402
from pacx_jax import cli, files, load_encoder, sharding  # noqa: E402
from pacx_jax.encoders import model_folder  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.evaluate import (  # noqa: E402
    alignment,
    comparison,
    features,
    probe,
    rollout,
)
from pacx_jax.evaluate.reports import report, tables  # noqa: E402
from pacx_jax.input import images, sources, subsets  # noqa: E402
from pacx_jax.input.normalize import normalize  # noqa: E402
from pacx_jax.modalities import teachers  # noqa: E402
from pacx_jax.models import mae  # noqa: E402
from pacx_jax.run import (  # noqa: E402
    checkpoint,
    embedding_cache,
    finished,
    goodput,
    host_memory,
    metrics,
)

FRACTIONS = (0.01, 0.1, 1.0)
LABS = ("labs_percentiles.npy", "labs_missingness.npy")
SUBSETS = 10  # label subsets a fraction
GROUPS = {
    "physiological": ("slvh_dlv", "heart_failure"),
    "anatomical": ("consolidation", "nodule", "hyperinflation"),
}
ARMS = {
    "pacx": tables.Arm("PaCX-MAE", "compared", "Stage 2: distilled from ECG and labs."),
    "mae": tables.Arm("MAE", "compared", "Stage 1, from which PaCX starts."),
    "mae_continued": tables.Arm(
        "MAE continued",
        "floor",
        "MAE trained on, for as many presentations of the same X-rays as Stage 2.",
    ),
    "shuffled": tables.Arm(
        "Shuffled pairs", "floor", "Stage 2 with ECGs and labs of other patients."
    ),
    "imagenet": tables.Arm(
        "ImageNet ViT", "floor", "Converted by pacx_jax.convert; given by --imagenet."
    ),
    "random": tables.Arm("Random ViT", "floor", "The same architecture, untrained."),
    "pixels": tables.Arm("Pixels 24x24", "floor", "Logistic regression on raw pixels."),
    "physiology": tables.Arm(
        "ECG + labs", "ceiling", "Probe on the ECG and lab embeddings themselves."
    ),
}
PAIRS = [("pacx", arm) for arm in ARMS if arm not in ("pacx", "physiology")] + [
    ("mae", "random"),
    ("mae_continued", "mae"),
    ("shuffled", "mae"),
]


def probe_source(target: pathlib.Path, split: str):
    """One split of the demo's prepared probe patients."""
    path = str(target / "data" / "prepared" / "probe")
    return sources.open_source(
        ml_collections.ConfigDict({"source": "prepared", "path": path}), split
    )


def ceiling(target: pathlib.Path) -> dict[str, np.ndarray]:
    """ECG and lab embeddings of all probe studies, by image path; cached."""
    raw = target / "data" / "raw" / "paired" / "probe"
    with (raw / "labels.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    ecg_folder = model_folder.load(target / "ecg", "ecg_net1d")
    labs_folder = model_folder.load(target / "labs", "labs_dae")
    cache = target / "cache" / f"ceiling_{_key(raw, ecg_folder, labs_folder)}.npz"
    if cache.exists():
        with np.load(cache, allow_pickle=False) as saved:
            return dict(zip(saved["path"], saved["z"], strict=True))
    reader = teachers.encoder("ecg", ecg_folder).reader
    microvolts = np.load(raw / "ecg.npy", mmap_mode="r", allow_pickle=False)
    records = [
        reader.load({"ecg": microvolts[i] / np.float32(1000)}, path)["ecg"]
        for i, path in enumerate(paths)
    ]
    z = features.physiology(
        ecg_folder,
        labs_folder,
        np.stack(records),
        np.load(raw / LABS[0], allow_pickle=False),
        np.load(raw / LABS[1], allow_pickle=False),
    )
    with files.whole(cache, "wb") as file:
        np.savez(file, path=np.array(paths), z=z)
    return dict(zip(paths, z, strict=True))


def _key(raw: pathlib.Path, *folders: model_folder.ModelFolder) -> str:
    """Names what the ceiling depends on: the records, and the encoders' weights."""
    digest = hashlib.sha256()
    for name in ("labels.csv", "ecg.npy", *LABS):
        status = (raw / name).stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns} ".encode())
    for folder in folders:
        digest.update(json.dumps([folder.architecture, folder.preprocessing]).encode())
        for leaf in jax.tree.leaves(folder.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:24]


def arms_of(identity: dict) -> dict[str, tables.Arm]:
    """The arms of a demo; the ImageNet encoder is there where one was given."""
    given = identity.get("imagenet")
    return {k: arm for k, arm in ARMS.items() if given or k != "imagenet"}


FOLDERS = {"pacx": "distill"}  # of arms whose workdir has another name


def encoders(target: pathlib.Path, identity: dict, k: int = 0) -> dict:
    """Every arm that is an X-ray encoder, as training k made it."""
    mae_folder = model_folder.load(target / training("mae", k), "vit")
    given = identity.get("imagenet")
    trained = ("pacx", "mae", "mae_continued", "shuffled")
    return ({"imagenet": load_encoder(given)} if given and not k else {}) | {
        **{a: load_encoder(target / training(FOLDERS.get(a, a), k)) for a in trained},
        "random": features.random_encoder(mae_folder, identity["seed"] + k),
    }


def compare(target: pathlib.Path, split: str, identity: dict, seeds: int = 1):
    """Probes of every arm's `seeds` trainings, tested on `split`."""
    source = {s: probe_source(target, s) for s in ("train", split)}
    sets = {s: features.read_probe_set(source[s]) for s in source}
    train, test = sets["train"], sets[split]
    if set(train.patients) & set(test.patients):
        raise PacxError("probe patients stand in both splits: the data are damaged")
    names = source["train"].label_names
    arms = {
        (name, k): {"train": encoder(train.images), "test": encoder(test.images)}
        for k in range(seeds)
        for name, encoder in encoders(target, identity, k).items()
    }
    pixels = {"train": features.pixels(train), "test": features.pixels(test)}
    arms["pixels", 0] = pixels
    physiology = ceiling(target)
    arms["physiology", 0] = {
        "train": np.stack([physiology[p] for p in paths_of(source["train"])]),
        "test": np.stack([physiology[p] for p in paths_of(source[split])]),
    }
    scores = probe.run_probes(
        arms, train.labels, train.mask, FRACTIONS, range(SUBSETS), groups=train.patients
    )
    n_labelled = {
        f: subsets.subset_size(len(train.labels), len(names), f) for f in FRACTIONS
    }
    scores = comparison.by_training(scores)
    there = {name for name, _ in arms}
    pairs = [pair for pair in PAIRS if set(pair) <= there]
    result = comparison.compare_arms(
        scores, test.labels, test.mask, test.patients, names, GROUPS, pairs, n_labelled
    )
    return result, test, names


def paths_of(source) -> list[str]:
    """The images' paths, as they stand in the probe set's CSV."""
    return [source[i]["path"] for i in range(len(source))]


def retrieval_rows(target: pathlib.Path, identity: dict) -> list[dict]:
    """Ridge alignment of each encoder's embedding with ECG and labs (section 5.4).

    Fitted on the training triplets, measured on the validation triplets.
    """
    config = finished.read_config(str(target / "distill"))
    sets = {s: sources.open_source(config.data, s) for s in ("train", "val")}
    embedding = {
        (m, split): embedding_cache.embeddings(  # cached since Stage 2
            source,
            teachers.load(m, config.modalities[m]),
            config.data,
            sharding.make_mesh(),
            cache_dir=config.cache_dir,
            batch_size=config.global_batch_size,
            quarantine=None,
        )
        for m in ("ecg", "labs")
        for split, source in sets.items()
    }
    rows = []
    for name, encoder in encoders(target, identity).items():
        if name not in ("pacx", "mae", "imagenet", "random"):
            continue
        z = {}
        for split, source in sets.items():
            decoded = (
                images.decode(source[i]["image"], source.name(i))
                for i in range(len(source))
            )
            z[split] = encoder(decoded)
        for m in ("ecg", "labs"):
            row = alignment.ridge_alignment(
                z["train"], embedding[m, "train"], z["val"], embedding[m, "val"]
            )
            shown = [k for k in row if k.startswith("recall")] + ["chance@5"]
            shown += ["cosine_centred", "r2"]
            rows.append({"encoder": ARMS[name].name, "target": m, "n": len(z["val"])})
            rows[-1] |= {k: row[k] for k in shown}
    return rows


def reconstructions(workdir: pathlib.Path, films: Sequence) -> list[tuple]:
    """Input, masked input and reconstruction of a few X-rays by a finished MAE."""
    config = ml_collections.ConfigDict(
        json.loads((workdir / "config.json").read_text())
    )
    count = len(films)
    model = mae.from_config(config.model)
    size, patch = config.data.image_size, config.model.patch_size
    grid = (size // patch, size // patch)
    x = np.stack([images.resize(image, size) for image in films])
    ids_keep, ids_restore, mask = mae.random_masking(
        jax.random.key(0), np.arange(count), grid[0] * grid[1], config.loss.mask_ratio
    )
    inputs = normalize(x, config.data.mean, config.data.std)
    params = checkpoint.read_params(workdir)
    pred = jax.jit(model.apply)({"params": params}, inputs, ids_keep, ids_restore)
    shown = mae.pictures(inputs, pred, mask, patch, config.loss.norm_pix_loss)
    std, mean = np.array(config.data.std), np.array(config.data.mean)
    seen, filled = (
        np.round(np.clip(np.asarray(image) * std + mean, 0, 1) * 255).astype(np.uint8)
        for image in shown
    )
    return list(zip(x, seen, filled, strict=True))


def rollouts(target: pathlib.Path, test, names, count: int = 3) -> list[tuple]:
    """Attention rollout of MAE and PaCX and their difference, for X-rays with HF."""
    failing = test.labels[:, names.index("heart_failure")] > 0
    chosen = np.flatnonzero(failing)[:count]
    if not chosen.size:  # as in a tiny cohort
        return []
    found = {}
    for name, folder in (("mae", "mae"), ("pacx", "distill")):
        encoder = load_encoder(target / folder)
        x = np.stack([encoder.preprocess(test.images[i]) for i in chosen])
        found[name] = rollout.rollout_maps(encoder.attentions(x), encoder.image_size)
    difference = rollout.difference_map(found["mae"], found["pacx"])
    return list(zip(x, found["mae"], found["pacx"], difference, strict=True))


def distill_retrieval(target: pathlib.Path) -> list[str]:
    """A sentence on CXR->ECG and CXR->labs retrieval in the shared space."""
    config = json.loads((target / "distill" / "config.json").read_text())
    source = sources.open_source(ml_collections.ConfigDict(config["data"]), "val")
    n = len(source)
    last = [r for r in metrics.read_rows(target / "distill") if "val/loss" in r][-1]
    sentences = []
    for m, name in (("ecg", "ECG"), ("labs", "labs")):
        found = {k: last[f"val/recall@{k}_{m}"] for k in (1, 5, 10)}
        shares = ", ".join(f"@{k} {share:.1%}" for k, share in found.items())
        sentences.append(
            f"CXR to {name} in Stage 2's shared space, {n} validation triplets: recall "
            f"{shares} (chance @5 {5 / n:.1%})."
        )
    return sentences


def write(target: pathlib.Path, split: str, seeds: int = 1) -> None:
    """Everything that the demo leaves behind."""
    identity = json.loads((target / "demo.json").read_text())
    progress = json.loads((target / "progress.json").read_text())
    read = time.time()
    result, test, names = compare(target, split, identity, seeds)
    arms = arms_of(identity)
    name = results.recorded_name("", identity["plan"] == results.plain(pacx.DEMO))
    told = spreads.notes(result.summary, name, spreads.read())
    stages = ("mae", "labs", "ecg", "distill", "shuffled", "mae_continued")
    page = report.Report(
        title="PaCX-MAE: the demonstration",
        simulated=True,
        headline=distill_retrieval(target),
        summary=result.summary,
        table=result.table,
        pairs=result.pairs,
        arms=arms,
        curves=results.curves(target, stages),
        reconstructions=reconstructions(target / "mae", test.images[:4]),
        retrieval=retrieval_rows(target, identity),
        rollouts=rollouts(target, test, names),
        configs={s: results.config(target, s) for s in stages},
        versions=results.versions(),
        seeds=results.seeds(identity["seed"], seeds),
        seconds=results.times(progress, read),
        goodput={s: goodput.read(str(target / s)) for s in stages},
        notes=[
            f"Probes are measured on the {split} patients.",
            "Retrieval is measured on Stage 2's validation triplets, which chose no "
            "checkpoint: every arm is its run's last step.",
            *told,
        ],
    )  # fmt: skip
    report.write_report(target / "report.html", page)
    text = tables.render_table_text(result.table, result.summary, arms)
    text = "\n".join([text, "", *told]).rstrip()
    (target / "comparison.txt").write_text(text + "\n", encoding="utf-8")
    numbers = {"table": result.table, "pairs": result.pairs}
    (target / "comparison.json").write_text(json.dumps(numbers, indent=1) + "\n")
    kept = {"labels": "labels", "fraction": "fraction", "mae": "b_auroc"}
    kept |= {"pacx": "a_auroc", "difference": "difference", "low": "low"}
    kept |= {k: k for k in ("high", "spread", "trainings", "subsets")}
    kept |= {k: k for k in ("n_patients", "n_labels")}
    rows = [{k: row[v] for k, v in kept.items()} for row in result.summary]
    summary = {"comparison": rows}
    (target / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


@cli.command
def main() -> None:
    """The command line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each arm")
    parser.add_argument("--ceiling", action="store_true")
    args = parser.parse_args()
    host_memory.keep_freed()
    if args.ceiling:
        ceiling(pathlib.Path(args.target))
    else:
        write(pathlib.Path(args.target), args.split, args.seeds)


if __name__ == "__main__":
    sys.exit(main())
