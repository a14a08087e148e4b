"""What a classifier's validation is summarised to: functions of `Objective.outputs`."""

from __future__ import annotations

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.objectives import scores


def multilabel(names: tuple[str, ...], undefined: str = "skip"):
    """Loss, the AUROC of each label, and macro means of AUROC, F1 at 0.5 and `scores`.

    A label with one class in the validation set is left out of the means ("skip"), or
    its AUROC counts as 0 ("zero"), as in torchmetrics (D35). The others of `scores`
    leave it out either way.
    """
    if undefined not in ("skip", "zero"):
        raise PacxError(f"config.undefined_auroc {undefined!r}: choose skip or zero")

    def summarize(outputs):
        import sklearn.metrics  # imported lazily: training does not need it

        y, mask = outputs["labels"], outputs["label_mask"] > 0
        x = outputs["logits"].astype(np.float64)
        bce = np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))
        metrics = {"loss": float(bce[mask].mean()) if mask.any() else float("nan")}
        aurocs, f1s, n_labels = [], [], 0
        for c, name in enumerate(names):
            m = mask[:, c]
            defined = len(np.unique(y[m, c])) == 2
            n_labels += defined
            if defined:
                auroc = float(sklearn.metrics.roc_auc_score(y[m, c], x[m, c]))
                metrics[f"auroc_{name}"] = auroc
            elif undefined == "zero" and m.any():
                auroc = 0.0
            else:
                continue
            aurocs.append(auroc)
            called = x[m, c] >= 0
            f1s.append(sklearn.metrics.f1_score(y[m, c], called, zero_division=0))
        metrics["auroc_macro"] = float(np.mean(aurocs)) if aurocs else float("nan")
        metrics["f1_macro"] = float(np.mean(f1s)) if f1s else float("nan")
        metrics["n_labels"] = float(n_labels)
        both, whole = scores.both_classes(y, mask), np.ones((1, len(y)))
        for name in ("ap", "precision", "recall", "brier", "ece", "accuracy"):
            each = scores.MEASURES[name](x, y, mask, whole)[0, both]
            metrics[f"{name}_macro"] = float(each.mean()) if both.any() else np.nan
        return metrics

    return summarize


def multiclass(names: tuple[str, ...]):
    """Cross-entropy, and macro means over the classes that are there.

    `auroc_macro` and `ap_macro` are of one class against the others; `recall_macro`
    is the balanced accuracy, `acc_macro` its name in the reference. Of precision and
    F1 a class that is called and not there counts as 0, as in scikit-learn.
    """

    def summarize(outputs):
        import sklearn.metrics

        known = outputs["label_mask"].min(-1) > 0
        known &= outputs["labels"].sum(-1) == 1
        x = outputs["logits"][known].astype(np.float64)
        truth = outputs["labels"][known].argmax(-1)
        logp = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        present = np.unique(truth)
        ranked = [(truth == c, logp[:, c]) for c in present if len(present) > 1]
        aurocs = [sklearn.metrics.roc_auc_score(*each) for each in ranked]
        aps = [sklearn.metrics.average_precision_score(*each) for each in ranked]
        called = x.argmax(-1)
        recalls = [(called[truth == c] == c).mean() for c in present]
        means = {"average": "macro", "zero_division": 0}
        return {
            "loss": float(-logp[np.arange(len(truth)), truth].mean()),
            "auroc_macro": float(np.mean(aurocs)) if aurocs else float("nan"),
            "ap_macro": float(np.mean(aps)) if aps else float("nan"),
            "accuracy": float((called == truth).mean()),
            "acc_macro": float(np.mean(recalls)),
            "recall_macro": float(np.mean(recalls)),
            "precision_macro": float(
                sklearn.metrics.precision_score(truth, called, **means)
            ),
            "f1_macro": float(sklearn.metrics.f1_score(truth, called, **means)),
            "n_labels": float(len(aurocs)),
        }

    return summarize
