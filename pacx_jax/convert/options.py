"""What no state dict tells of its model, and flags or files beside it must."""

from __future__ import annotations

import dataclasses

from pacx_jax.errors import PacxError
from pacx_jax.models.positions import RESAMPLING
from pacx_jax.models.vit import POOLS

LIMITS = {
    "num_heads": (1, 1024),
    "decoder_num_heads": (1, 1024),
    "ln_eps": (1e-20, 0.1),
    "final_ln_eps": (1e-20, 0.1),
    "alpha": (1e-6, 1e6),
    "mean": (0, 1),  # of pixels divided by 255
    "std": (1e-6, 1),
    "decimate": (1, 100),
    "rotary_grid": (1, 1024),
}


CHOICES = {
    "task": ("multilabel", "multiclass"),
    "pool": POOLS,
    "posemb_resampling": RESAMPLING,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a state dict does not tell; None and () stand for the kind's own value.

    Attributes:
      num_heads, decoder_num_heads: heads of attention.
      ln_eps: epsilon of LayerNorms.
      final_ln_eps: epsilon of the last one.
      alpha: of LoRA; the published weights' is 16 (D3).
      mean, std: normalisation of the images.
      labels: names of a classifier's outputs.
      task: of a classifier, "multilabel" or "multiclass".
      mask_inputs: whether missing labs are zeroed at extraction (D7).
      decimate: of an ECG encoder: how many samples of 500 Hz its input averages.
      pool, posemb_resampling: as in `vit.ViT`.
      rotary_grid: patches a side of the images that it was pretrained with.
    """

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    ln_eps: float | None = None
    final_ln_eps: float | None = None
    alpha: float = 16.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    task: str | None = None
    mask_inputs: bool = True
    decimate: int = 1
    pool: str | None = None
    posemb_resampling: str | None = None
    rotary_grid: int | None = None

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            each = value if isinstance(value, tuple) else (value,)
            good = all(isinstance(x, (int, float)) and low <= x <= high for x in each)
            if value is not None and not good:  # nor NaN
                text = " ".join(map(str, each))
                what = " (pixels divided by 255)" if name in ("mean", "std") else ""
                raise PacxError(f"--{name} {text}: give {low:g} to {high:g}{what}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in (None, *choices):
                raise PacxError(
                    f"--{name} {getattr(self, name)!r}: give {' or '.join(choices)}"
                )
