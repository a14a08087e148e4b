"""Late fusion: the logits of a study are the mean over its views (arXiv 2511.22294).

Shape letters: b or n studies, v views, c labels. Views stand in the fixed order of
input/studies.py, the first of each kind first: slot 0 is a frontal if there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pacx_jax.types import Array

# Name -> (first views that are used, views that a study must have).
NUMBERS = {
    "one_view": (1, 1),
    "two_views": (2, 2),
    "one_of_two_views": (1, 2),  # beside two_views: what the second view adds
}


def mean_logits(view_logits: Array, view_mask: Array) -> Array:
    """(b, v, c) and (b, v), 1 = there is an image -> (b, c).

    What stands in the place of a view that is not there moves nothing and gets a
    gradient of zero.
    """
    count = view_mask.sum(1, keepdims=True)
    total = (view_logits * view_mask[..., None]).sum(1)
    return total / (count + (count == 0))


def populations(outputs: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """What a classifier says of fewer views: NUMBERS' name -> its studies' outputs.

    Args:
      outputs: of `classify`: view_logits (n, v, c), view_mask (n, v), labels and
        label_mask (n, c).

    Returns:
      logits, labels and label_mask (m, c), and `rows` (m,), which studies these are.
      Without the names of no study; {} for single images.
    """
    found = {}
    if "view_logits" not in outputs:
        return found
    for name, (used, least) in NUMBERS.items():
        rows = np.flatnonzero(outputs["view_mask"].sum(1) >= least)
        if not len(rows):
            continue
        part = {k: outputs[k][rows] for k in ("labels", "label_mask")}
        views = (outputs[k][rows, :used] for k in ("view_logits", "view_mask"))
        found[name] = part | {"logits": mean_logits(*views), "rows": rows}
    return found


def by_views(summarize: Callable) -> Callable:
    """`summarize`, and its macro means of fewer views too.

    `auroc_macro_two_views` is that of the first two views of the studies that have two,
    of which there are `n_two_views`; see NUMBERS.
    """

    def summarize_all(outputs):
        metrics = dict(summarize(outputs))
        for name, part in populations(outputs).items():
            metrics[f"n_{name}"] = float(len(part["rows"]))
            macro = {k: v for k, v in summarize(part).items() if k.endswith("_macro")}
            metrics |= {f"{k}_{name}": v for k, v in macro.items()}
        return metrics

    return summarize_all
