"""Parity cases: inputs, weights, outputs and gradients, as PyTorch computes them.

A case is a flat dict of numpy arrays:
  in/...       inputs, images as (b, h, w, c), ECGs as (b, t, leads)
  state/...    the state dict, with the names of the published checkpoints
  out/...      what PyTorch gives in float32; out64/..., in float64
  grad/NAME/.. gradients of out/NAME, by state dict name or by input name, computed in
               float64 and rounded to float32: the truth to either's rounding
  final/..., final64/...  what was trained, afterwards

`record.py` writes them to `recorded/`; where PyTorch is installed, the tests also make
them live. Inputs and weights are drawn by numpy, so that they do not depend on torch.
"""

from __future__ import annotations

from tests.parity import cases_foreign as foreign
from tests.parity import cases_models as models
from tests.parity import cases_stage_two as two
from tests.parity import cases_training as training
from tests.parity.making import Case

ALL = {
    f.__name__: f
    for f in (
        models.mae, models.mvmae, models.labs, models.ecg, models.rollout,
        models.classifier, models.segmenter, models.text, models.text_positions,
        models.unified, models.unified_learned,
        foreign.dinov2, foreign.dinov2_plain, foreign.eva02, foreign.eva02_mean,
        foreign.densenet,
        two.pacx, two.info_nce, two.cosine_regression, training.train_mae,
        training.train_labs, training.train_pacx,
    )
}  # fmt: skip


def live(name: str) -> Case:
    """Makes a case with PyTorch, on one thread, and lets it out of no other state."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return ALL[name]()
    finally:
        torch.set_num_threads(threads)
