"""Stage 1, laboratory values: denoising autoencoder of 50 percentiles.

As published: 50 epochs of 10,000 Symile-MIMIC admissions, batch 256.

  python -m pacx_jax.main --config=configs/labs_dae.py --workdir=runs/labs \\
      --config.data.path=DIR
"""

from configs import base

EPOCH = 10_000 // 256


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "labs_dae", "labs_dae"
    c.total_steps = 50 * EPOCH
    c.eval_every = c.save_every = 5 * EPOCH
    c.best = ""  # keeps none: the reference too uses the last
    c.modality = "labs"  # or vitals, or the dotted path of your own module
    c.model = base.ml_collections.ConfigDict()
    c.model.features = 50  # values of a study, known or not
    c.model.hidden = 512  # units of the hidden layers
    c.model.latent = 256  # width of the embedding
    c.model.mask_inputs = True  # D7: the reference's extraction does not mask
    c.loss = base.ml_collections.ConfigDict()
    c.loss.corruption = 0.15  # share of the known values to hide from the encoder
    c.optim.peak_lr = 3e-4
    c.optim.weight_decay = 0.01
    c.optim.decay = "all"
    c.optim.warmup_steps = 200
    c.optim.warmup_from_zero = True
    if "reference" in presets:
        c.model.mask_inputs = False
    if "runlocal" in presets:
        base.runlocal(c, "symile_mimic", total_steps=800)
        c.global_batch_size = 64
        c.optim.peak_lr = 9e-4
        c.optim.warmup_steps = 80
    return c
