"""Stage 1, vital signs: denoising autoencoder of 7 percentiles, a diff of labs_dae.

  python -m pacx_jax.main --config=configs/vitals_dae.py --workdir=runs/vitals \\
      --config.data.path=DIR

DIR is a set with `vitals`: mimic_vitals, or symile_mimic with --vitals
(data/README.md). docs/extending.md continues to a distilled encoder.
"""

from configs import labs_dae
from pacx_jax.modalities import vitals


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    c = labs_dae.get_config(arg)
    c.name = "vitals_dae"
    c.modality = "vitals"
    c.model.features = len(vitals.SIGNS)
    c.model.hidden = 128
    c.model.latent = 32
    return c
