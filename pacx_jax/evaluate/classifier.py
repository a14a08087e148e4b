"""A trained classifier as a function: X-rays in, calibrated probabilities out.

It lies in a model folder (`encoders.model_folder`): the encoder, a linear head in
heads.safetensors, and beside them what was chosen on validation patients:

  calibration.json   {"format": 1, "chosen_on": "val", "unit": "image" or "study",
                      "labels": {NAME: {"known": n, "positives": n,
                                        "calibrated": bool, "a": x, "b": x,
                                        "thresholds": {RULE: {"logit": x,
                                                              "probability": x}}}}}

A label's calibrated probability is sigmoid(a x + b) of its logit x (Platt 1999), and a
rule of `thresholds.RULES` calls an X-ray whose probability is at least its own. A label
that had one class on validation, or that ranked no better than chance there, is not
calibrated (a = 1, b = 0) and has no thresholds. Of one of several classes x is that of
the class against the others, and calibrated probabilities are divided by their sum
(Zadrozny and Elkan 2002); the most probable class is called.

A finished `classify` run exports such a folder, and `fit_probe` makes one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pacx_jax.encoders import golden, kinds, model_folder, model_heads
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.encoders.xray_encoder import Encoder, Image, Views
from pacx_jax.errors import INSTALL, PacxError
from pacx_jax.evaluate import measures, probe
from pacx_jax.objectives.scores import sigmoid

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

FORMAT = 1
RULE = "max_f1"  # of `Classifier.thresholds`

CARD = """# pacx_jax classifier

Written by pacx_jax: a linear layer on the embedding of a chest-X-ray encoder.

## What it is
Task {task}; labels: {labels}. calibration.json says on how many validation examples
the probabilities were calibrated and the thresholds chosen, label by label.

## Use
{install}

```python
from pacx_jax import Classifier
classifier = Classifier.load("path/to/this/folder")
p = classifier.predict(["image.png"])  # (n, {count}) probabilities
```

## Limits
For research. Not a medical device, not validated for clinical use. Measure it on your
own patients, by site, sex, age and view, before you rely on it.
"""


class Classifier:
    """An encoder, a linear layer, calibration and thresholds.

    Args:
      encoder: of X-rays.
      kernel, bias: (width, c) and (c,) float32, on the encoder's embedding.
      labels: c names.
      task: "multilabel" (a probability each) or "multiclass" (one of c).
      calibration: content of calibration.json (`calibration_of`); None: there is none,
        so probabilities are those of the logits, and nothing is called.
      card: the text of README.md.

    Attributes:
      encoder, labels, task, calibration: as given.
      thresholds: label -> probability from which `RULE` calls it; labels without one
        are not in it.

    Example:
      classifier = Classifier.load("runs/finetune")
      p = classifier.predict(["a.png", "b.dcm"])  # (2, c)
      called = classifier.decide(p)  # (2, c) of 1, 0, NaN without a threshold
    """

    def __init__(
        self,
        encoder: Encoder,
        kernel: Float[np.ndarray, "width c"],
        bias: Float[np.ndarray, " c"],
        labels: Sequence[str],
        task: str = "multilabel",
        calibration: Mapping[str, Any] | None = None,
        card: str = "",
    ):
        self.encoder, self.labels, self.task = encoder, tuple(labels), task
        self.calibration, self._card = calibration, card
        self._kernel, self._bias = np.float32(kernel), np.float32(bias)

    def __repr__(self) -> str:
        known = "calibrated" if self.calibration else "not calibrated"
        labels = ", ".join(self.labels)
        return f"Classifier({self.task}: {labels}; {known}; {self.encoder!r})"

    @property
    def thresholds(self) -> dict[str, float]:
        """Label -> the probability from which `RULE` calls it."""
        return self.thresholds_of(RULE)

    def thresholds_of(self, rule: str) -> dict[str, float]:
        """Label -> the probability from which `rule` calls it.

        Raises:
          PacxError: a rule that was not chosen on validation.
        """
        found = {
            name: about["thresholds"]
            for name, about in (self.calibration or {"labels": {}})["labels"].items()
            if about["thresholds"]
        }
        for rules in found.values():
            if rule not in rules:
                raise PacxError(
                    f"threshold rule {rule!r}: this model has {', '.join(rules)}"
                )
        return {name: rules[rule]["probability"] for name, rules in found.items()}

    def predict(
        self,
        images: Image | Sequence[Image],
        views: Views = None,
        studies: Sequence[Hashable] | None = None,
    ) -> Float64[np.ndarray, "n c"]:
        """Probabilities of images of any size, or of studies of several images.

        Args:
          images, views: as for a call of `Encoder`.
          studies: (n,) what each image is of. A study's logits are the mean of its
            images', as in training with data.group="study".

        Returns:
          (n, c) float64, in the order of `labels`, calibrated where `calibration` says
          so; with `studies` a row for each, in the order in which they first come.

        Raises:
          PacxError: as a call of `Encoder`, or not as many studies as images.
        """
        logits = self.logits(self.encoder(images, views))
        if studies is not None:
            if len(studies) != len(logits):
                raise PacxError(
                    f"{len(studies)} studies for {len(logits)} images: give one each"
                )
            number = {name: i for i, name in enumerate(dict.fromkeys(studies))}
            logits = probe.fuse(logits, np.array([number[name] for name in studies]))
        return self.probabilities(logits)

    def logits(
        self, embeddings: Float[np.ndarray, "n width"]
    ) -> Float64[np.ndarray, "n c"]:
        """Embeddings (n, width) -> logits (n, c) float64, before calibration."""
        return np.float64(embeddings) @ self._kernel + self._bias

    def probabilities(
        self, logits: Float[np.ndarray, "n c"]
    ) -> Float64[np.ndarray, "n c"]:
        """Logits (n, c) -> probabilities (n, c) float64."""
        x = np.asarray(logits, np.float64)
        if self.task == "multiclass":
            x = measures.one_vs_rest(x)
        if self.calibration:
            about = [self.calibration["labels"][name] for name in self.labels]
            a, b = (np.array([each[k] for each in about]) for k in ("a", "b"))
            x = a * x + b
        p = sigmoid(x)
        return p / p.sum(1, keepdims=True) if self.task == "multiclass" else p

    def decide(
        self, probabilities: Float[np.ndarray, "n c"], rule: str = RULE
    ) -> Float64[np.ndarray, "n c"]:
        """Which labels are called: (n, c) float64 of 1, 0, NaN without a threshold.

        Args:
          probabilities: of `predict`.
          rule: one of `thresholds.RULES`; one of several classes needs none.
        """
        p = np.asarray(probabilities)
        if self.task == "multiclass":
            return np.eye(len(self.labels))[p.argmax(1)]
        found = self.thresholds_of(rule)
        limits = np.array([found.get(name, np.nan) for name in self.labels])
        return np.where(np.isnan(limits), np.nan, (p >= limits).astype(np.float64))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the folder that `load` reads; a model folder there is replaced.

        Raises:
          PacxError: something else is there.
        """
        e = self.encoder
        params = jax.device_get(e.params)
        about = {"encoder_width": e.width, "labels": list(self.labels)}
        head = {"linear": {"kernel": self._kernel, "bias": self._bias}}
        about |= {"task": self.task}
        heads = Heads("classify", about, {"head": head}, self.calibration)
        model = model_folder.ModelFolder(
            e.kind, e.architecture, e.preprocessing, params, heads
        )
        card = self._card or CARD.format(
            install=INSTALL,
            task=self.task,
            labels=", ".join(self.labels),
            count=len(self.labels),
        )
        model_folder.save(folder, model, card, golden.beside(model))

    @classmethod
    def load(
        cls, path: str | os.PathLike, batch_size: int = 32, dtype: str = "float32"
    ) -> Classifier:
        """Opens a finished `classify` run, or a folder that it or `save` wrote.

        Args:
          path: as for `load_encoder`.
          batch_size, dtype: see `Encoder`.

        Raises:
          PacxError: no such folder, one without a classifier, or a damaged one.
        """
        folder = model_folder.resolve(path)
        model = model_folder.load(folder, kinds.XRAY)
        if model.heads is None or model.heads.kind != "classify":
            raise PacxError(
                f"{path} holds an encoder without a classifier: train one by pacx "
                "train --config=finetune, or pacx_jax.fit_probe; a run of an earlier "
                "version has it after pacx export --workdir=DIR --head"
            )
        about, linear = model.heads.architecture, model.heads.params["head"]["linear"]
        card = folder / "README.md"
        return cls(
            Encoder(model, batch_size, dtype),
            linear["kernel"],
            linear["bias"],
            about["labels"],
            about.get("task", "multilabel"),
            _checked(folder, model.heads),
            card.read_text("utf-8") if card.is_file() else "",
        )


def calibration_of(
    chosen: Mapping[str, Mapping[str, Any]],
    split: str,
    task: str = "multilabel",
    unit: str = "image",
) -> dict[str, Any]:
    """The content of calibration.json.

    Args:
      chosen: of `frozen.choose` on the validation split.
      split: its name.
      task: "multilabel", or "multiclass", which needs no thresholds.
      unit: what a logit was of, "image" or "study".
    """
    labels = {}
    for name, found in chosen.items():
        a, b = found.get("scalings", {}).get("platt", (0.0, 0.0))
        good = a > 0 and math.isfinite(a) and math.isfinite(b)
        a, b = (a, b) if good else (1.0, 0.0)
        called = found["thresholds"] if good and task == "multilabel" else {}
        labels[name] = {
            "known": found["known"],
            "positives": found["positives"],
            "calibrated": good,
            "a": a,
            "b": b,
            "thresholds": {
                rule: {"logit": t, "probability": float(sigmoid(a * t + b))}
                for rule, t in called.items()
            },
        }
    return {"format": FORMAT, "chosen_on": split, "unit": unit, "labels": labels}


def _checked(folder: Any, heads: Heads) -> dict[str, Any] | None:
    """The classifier's calibration; PacxError for a damaged one, or one of others."""
    found, labels = heads.calibration, heads.architecture["labels"]
    if found is None:
        return None
    try:
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, this reads {FORMAT}")
        for name in labels:
            about = found["labels"][name]
            numbers = [about["a"], about["b"]]
            for rule in about["thresholds"].values():
                numbers += [rule["logit"], rule["probability"]]
            if not all(math.isfinite(x) for x in numbers):
                raise ValueError(f"{name} has numbers that are not finite")
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        reason = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise PacxError(
            f"{folder / model_heads.CALIBRATION} is damaged ({reason}): export the "
            "model again, or delete the file to do without calibration"
        ) from None
    return found
