"""Stage 1, images: MAE ViT-B/16 on CheXpert, 90% of the patches masked.

PaCX-MAE, arXiv 2606.01537, section 3.1; 400 epochs of 223,414 X-rays at a global batch
of 512. 42.1 GFLOP per image in training (docs/performance.md).

  python -m pacx_jax.main --config=configs/mae_vitb16.py --workdir=runs/mae \\
      --config.data.path=DIR
  python -m pacx_jax.main --config=configs/mae_vitb16.py:runlocal --workdir=runs/mae
"""

from configs import base

EPOCH = 223_414 // 512


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    base.vit(c)
    c.name, c.objective = "mae_vitb16", "mae"
    c.dtype = "bfloat16"
    c.global_batch_size = 512
    c.total_steps = 400 * EPOCH
    c.eval_every = c.save_every = 5 * EPOCH
    c.best = "val/loss"  # kept; like the reference, later stages use the last
    c.model_init_parts = ("encoder", "decoder")  # taken from model_init

    c.data.transform = "mae"
    c.data.hflip = 0.5  # as in the reference; the heart's side is then not learnt

    c.loss = base.ml_collections.ConfigDict()
    c.loss.mask_ratio = 0.9  # D1: the reference's code trains at 0.75
    c.loss.norm_pix_loss = False  # True: each patch against its own mean and std

    c.optim.peak_lr = 1.5e-4
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.05
    c.optim.warmup_steps = 10 * EPOCH
    if "reference" in presets:
        c.loss.mask_ratio = 0.75
        c.optim.steps_per_epoch = EPOCH + 1  # it keeps the last partial batch
        c.optim.warmup_steps = 10 * (EPOCH + 1)
        c.total_steps = 400 * (EPOCH + 1)
    if "runlocal" in presets:
        runlocal(c)
    return c


def runlocal(c):
    """A small ViT at 48 pixels on the embedded cohort."""
    base.runlocal(c, "chexpert", total_steps=2400)
    c.model.variant, c.model.patch_size = "demo", 8
    c.model.decoder.update(width=64, depth=2, num_heads=2)
    c.data.image_size = 48
    c.data.hflip = 0.0  # the heart stays on the left
    c.data.crop_scale = (0.7, 1.0)
    c.global_batch_size = 64
    c.optim.peak_lr = 2e-3
    c.optim.warmup_steps = 120
    c.optim.steps_per_epoch = 0
