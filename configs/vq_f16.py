"""CheXmix's image tokenizer: a VQ autoencoder, 14 x 14 tokens of 224-pixel X-rays.

arXiv 2604.22989 takes Chameleon's tokenizer; this one is trained here, on CheXpert's
223,414 X-rays (docs/chexmix.md).

  python -m pacx_jax.main --config=configs/vq_f16.py --workdir=runs/vq \\
      --config.data.path=DIR
  python -m pacx_jax.main --config=configs/vq_f16.py:runlocal --workdir=runs/vq

At 512 pixels (32 x 32 tokens): --config.data.image_size=512.
"""

from configs import base

EPOCH = 223_414 // 256


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "vq_f16", "vq"
    c.dtype = "bfloat16"
    c.global_batch_size = 256
    c.total_steps = 40 * EPOCH
    c.eval_every = c.save_every = 2 * EPOCH
    c.best = "val/loss"

    c.model = base.ml_collections.ConfigDict()
    c.model.widths = (64, 128, 256, 256)  # channels; each level halves the sides
    c.model.blocks = (2, 2, 2, 2)  # residual blocks of each level
    c.model.codes = 4096  # number of codes
    c.model.code_width = 32  # length of a code

    c.data.channels = 1
    c.data.mean, c.data.std = (0.5056,), (0.252,)
    c.data.transform = "mae"

    c.loss = base.ml_collections.ConfigDict()
    c.loss.commitment = 0.25  # weight of 1 - cosine of a feature and its code
    c.loss.adversarial = 0.0  # weight of a patch discriminator's verdict; 0: none
    c.loss.adversarial_from = 0  # the step
    c.loss.decay = 0.99  # of the codes' moving averages
    c.loss.dead = 0.1  # of the mean share: a code that is used less is drawn anew

    c.optim.peak_lr = 4e-4
    c.optim.b2 = 0.99
    c.optim.weight_decay = 1e-4
    c.optim.clip_norm = 1.0
    c.optim.warmup_steps = EPOCH
    c.optim.min_ratio = 0.05
    if "runlocal" in presets:
        runlocal(c)
    return c


def runlocal(c):
    """48 pixels and 6 x 6 tokens of 256 codes on the embedded cohort."""
    base.runlocal(c, "chexpert", total_steps=600)
    c.model.widths, c.model.blocks = (16, 32, 64), (1, 1, 1)
    c.model.codes, c.model.code_width = 256, 16
    c.data.image_size = 48
    c.data.crop_scale = (0.7, 1.0)
    c.global_batch_size = 32
    c.loss.decay = 0.95
    c.optim.peak_lr = 2e-3
    c.optim.warmup_steps = 40
