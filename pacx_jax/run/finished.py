"""From a finished run to a model folder: merged weights, description, model card."""

from __future__ import annotations

import dataclasses
import pathlib

import ml_collections

from pacx_jax import files, objectives
from pacx_jax.distributed import processes
from pacx_jax.encoders import golden, kinds, model_folder, model_heads
from pacx_jax.errors import INSTALL, PacxError
from pacx_jax.objectives import captioning
from pacx_jax.run import checkpoint, fingerprints, metrics, model_card, older

CARD = """# {title}

Written by pacx_jax from the run `{name}` (objective `{objective}`, step {step}).

## What it is
{what}

## Intended use
Research on medical images and their representations: embeddings for probes, retrieval
and comparison of methods. Not for diagnosis, triage or any decision on a patient.

## Training sets and their terms
{sets}

## Licence
license: {license}

## Training
- seed {seed}, global batch {batch}, {steps} steps, dtype {dtype}
- evaluation of that step on the validation split: {evaluation}

## Measured
{measured}

## Known shortcuts
{shortcuts}

## Use
{install}

```python
from pacx_jax import load_encoder
encoder = load_encoder("path/to/this/folder")
z = encoder(["image.png"])  # (n, width) float32
{predict}```

## Limits
For research. Not a medical device, not validated for clinical use. What it was trained
on decides what it sees: measure it on your own patients, by site, sex, age and view,
before you rely on it.{simulated}

## Method
PaCX-MAE, arXiv 2606.01537. There is no optimizer state in this folder.
"""


def from_workdir(
    config,
    workdir: str,
    out: str | None = None,
    which: str | None = None,
    heads: bool = False,
) -> pathlib.Path:
    """Writes the run's encoder to `out` (default WORKDIR/export); returns where.

    Args:
      config: the run's configuration.
      workdir: the finished run.
      which: "latest" or "best"; default `config.export`.
      heads: also what was trained beside the encoder (see model_heads).
    """
    which = which or config.export
    model = read_run(config, workdir, which, heads)
    target = pathlib.Path(out) if out else pathlib.Path(workdir) / "export"
    if processes.is_first():
        text = card(config, workdir, model, which)
        model_folder.save(target, model, text, golden.beside(model))
    return target


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """The configuration that a run was trained with."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        raise PacxError(f"{path} does not exist: is {workdir} a run's workdir?")
    try:
        config = older.upgrade(files.read_json(path))
        found = ml_collections.ConfigDict(config)
    except (OSError, ValueError, TypeError) as e:
        raise PacxError(f"{path} is damaged: {e}") from None
    if "objective" not in found:
        raise PacxError(f"{path} is no run's configuration: {workdir} is no workdir")
    return found


def read_run(
    config, workdir: str, which: str | None = None, heads: bool = False
) -> model_folder.ModelFolder:
    """The encoder of a run's checkpoint, and with `heads` what stands beside it."""
    params = checkpoint.read_params(workdir, which or config.export)
    labels = pathlib.Path(workdir) / "labels.json"
    names = label_names(labels) if heads and labels.is_file() else None
    model = objectives.load(config.objective).export(config, params, names)
    if not heads:
        return dataclasses.replace(model, heads=None)
    file = pathlib.Path(workdir) / model_heads.CALIBRATION
    if model.heads and file.is_file():
        told = files.read_own_json(file, "train the run again, or delete the file")
        model = dataclasses.replace(
            model, heads=dataclasses.replace(model.heads, calibration=told)
        )
    if model.heads is None:
        raise PacxError(
            f"{workdir}: the objective {config.objective} keeps no heads, or {labels}, "
            f"the names of their outputs, does not exist: take {workdir}/export, the "
            "encoder without its head"
        )
    return model


def read_captioner(workdir: str) -> captioning.Captioning:
    """The text decoder of an MVMAE-V2T's run.

    Raises:
      PacxError: the run has none, or its tokenizer is not the one it was trained with.
    """
    found = captioning.make(read_config(workdir))
    if found is None:
        raise PacxError(f"{workdir}: the run has no text decoder (caption.weight is 0)")
    about = pathlib.Path(workdir) / fingerprints.DATA
    trained = files.read_own_json(about, "restore it from a copy")
    if trained.get("report.fingerprint") != found.words.sha256:
        raise PacxError(
            f"{found.words.path}: another tokenizer (sha256 {found.words.sha256[:12]}) "
            f"than {workdir} was trained with: restore that one"
        )
    return found


def label_names(file: pathlib.Path) -> list[str]:
    """The names of a classifier's outputs, as labels.json has them."""
    try:
        labels = files.parse_json(file.read_text("utf-8"))
        if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
            raise ValueError("not a list of names")
    except (OSError, ValueError) as e:
        raise PacxError(f"{file} is damaged ({e}): train the run again") from None
    return labels


def _best_step(path: pathlib.Path) -> int:
    try:
        step = files.read_json(path)["step"]
        if not isinstance(step, int):
            raise ValueError(f"step is {step!r}")
    except (OSError, ValueError, KeyError) as e:
        raise PacxError(f"{path} is damaged ({e!r}): take --which=latest") from None
    return step


def card(config, workdir, model: model_folder.ModelFolder, which: str) -> str:
    """The model card, README.md of a folder."""
    step, evaluation = config.total_steps, {}
    if which == "best":
        step = _best_step(pathlib.Path(workdir) / "best.json")
    for row in metrics.read_rows(workdir):
        found = {k: v for k, v in row.items() if k.startswith("val/")}
        if row["step"] <= step:
            evaluation = found or evaluation
    simulated = (
        "\nThis one was trained on SIMULATED patients: it is of no use on real ones."
        if config.data.get("simulated", False)
        else ""
    )
    about = getattr(objectives.load(config.objective), "about", None)
    more = about(config) if about else ""
    return CARD.format(
        title=f"pacx_jax {model.kind}",
        name=config.name,
        objective=config.objective,
        step=step,
        install=INSTALL,
        what=" ".join(filter(None, (kinds.of(model.kind).about, more))),
        seed=config.seed,
        batch=config.global_batch_size,
        steps=config.total_steps,
        dtype=config.dtype,
        evaluation=shown(config, evaluation) or "none",
        sets="\n".join(f"- {line}" for line in model_card.training_sets(config)),
        license=config.get("license", "") or model_card.NOT_STATED,
        measured=model_card.measurements(workdir),
        shortcuts=model_card.SHORTCUTS,
        simulated=simulated,
        predict=_predict(model),
    )


def _predict(model: model_folder.ModelFolder) -> str:
    """How a classifier's folder is asked, for its card; "" for another's."""
    if model.heads is None or model.heads.kind != "classify":
        return ""
    count = len(model.heads.architecture["labels"])
    return (
        "from pacx_jax import Classifier\n"
        'classifier = Classifier.load("path/to/this/folder")\n'
        f'p = classifier.predict(["image.png"])  # (n, {count}): classifier.labels\n'
    )


def shown(config, values: dict[str, float | None]) -> str:
    """The metrics that the objective shows, of an evaluation's ("val/...")."""
    names = (f"val/{name}" for name in objectives.load(config.objective).SHOWN)
    return ", ".join(f"{k} {values[k]:.4f}" for k in names if values.get(k) is not None)
