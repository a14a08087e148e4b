"""Metrics of distillation on the validation set."""

from __future__ import annotations

import math

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.objectives import retrieval


def summarize(config, modalities: tuple[str, ...], total):
    """Within-batch and dataset-level metrics of the validation set.

    "Within batch" means groups of `global_batch_size` consecutive examples. Each
    modality is measured on the examples that have it.

    Args:
      total: `clip_<m>` and `regression_<m>` -> (clip, regression, loss).
    """
    smoothing, b = config.loss.label_smoothing, config.global_batch_size

    def summarize_outputs(out):
        metrics, parts, scale = {}, {}, float(out["scale"][0])
        clamped = min(max(scale, 1.0), 100.0)  # as in the loss
        for m in modalities:
            here = out.get(f"{m}_present", np.ones(len(out["cxr"]))) > 0
            if not here.any():
                raise PacxError(
                    f"no example of the validation split has {m}: set "
                    f"config.modalities.{m}.clip_weight and .regression_weight to 0"
                )
            starts = range(0, len(here), b)
            groups = [slice(i, i + b) for i in starts if here[i : i + b].any()]
            groups = [
                _group(out["cxr"][g][here[g]], out[m][g][here[g]], clamped, smoothing)
                for g in groups
            ]
            sizes = np.array([g["size"] for g in groups], np.float64)
            for name in groups[0]:
                if name != "size":
                    values = [g[name] for g in groups]
                    metrics[f"{name}_{m}"] = float(np.average(values, weights=sizes))
            found = retrieval.recall_at_k(out["cxr"][here], out[m][here])
            metrics |= {f"{k}_{m}": v for k, v in found.items() if "recall" in k}
            metrics[f"cosine_sim_{m}"] = float(out[f"cosine_{m}"][here].mean())
            parts[f"clip_{m}"] = metrics[f"clip_{m}"]
            parts[f"regression_{m}"] = 1 - metrics[f"cosine_sim_{m}"]
        metrics |= {
            "loss": float(total(parts)[2]),
            "z_norm": float(np.linalg.norm(out["z"], axis=-1).mean()),
            "z_std": float(out["z"].std(0).mean()),
            "logit_scale": scale,
        }
        return metrics

    return summarize_outputs


def _group(a: np.ndarray, b: np.ndarray, scale: float, smoothing: float) -> dict:
    """Metrics of one group of paired unit vectors, (n, d) each."""
    n = len(a)
    similarity = (a @ b.T).astype(np.float64)
    loss = 0.0
    for s in (similarity, similarity.T):
        logp = scale * s - np.logaddexp.reduce(scale * s, axis=1, keepdims=True)
        positive = np.diag(logp)
        loss -= ((1 - smoothing) * positive + smoothing * logp.mean(1)).mean() / 2
    rank = (similarity > np.diag(similarity)[:, None]).sum(1)
    off = similarity.sum() - np.trace(similarity)
    return {
        "size": n,
        "clip": loss,
        "top1": (rank < 1).mean(),
        "top5": (rank < 5).mean(),
        "pos_sim": np.diag(similarity).mean(),
        "neg_sim": off / max(n * (n - 1), 1),
        "mi_bound": math.log(n) - loss,
        "loss_over_log_n": loss / math.log(n) if n > 1 else 0.0,
    }
