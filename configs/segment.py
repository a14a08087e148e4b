"""Stage 3: masks from a frozen encoder's patch tokens (docs/method.md).

The lungs of COVID-QU-Ex, 50 epochs of 85 steps. Other sets have other epochs (26 steps
of QaTa-COV19, 761 of CXLSeg): set `total_steps`, `eval_every`, `optim.warmup_steps`.

  python -m pacx_jax.main --config=configs/segment.py --workdir=runs/segment \\
      --config.model_init=runs/distill --config.data.path=prepared/covid_qu_ex

`:runlocal` needs lung masks of simulated patients, beside the demo's data:

  python data/cohort/generate.py --target=runs/demo/data/raw/masked --seed=1 \\
      --pretrain=0 --ecg=0 --symile=100 --symile_size=64 --probe_train=600 \\
      --probe_val=100 --probe_test=200 --masks=-1 --workers=2
  python data/prepare.py folder --source=runs/demo/data/raw/masked/probe \\
      --target=runs/demo/data/prepared/masked --masks=masks --size=96
"""

from configs import base

EPOCH = 85  # 21,715 images at a batch of 256, the last batch kept


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "segment", "segment"
    c.seed = 42
    c.dtype = "bfloat16"  # of the frozen encoder; the decoder is float32
    c.global_batch_size = 256
    c.total_steps = 50 * EPOCH
    c.eval_every = c.save_every = c.log_every = EPOCH
    c.best, c.best_mode, c.export = "val/dice", "max", "best"
    c.decoder = base.ml_collections.ConfigDict()
    c.decoder.width = 256  # halves at each doubling of the side
    c.loss = base.ml_collections.ConfigDict()
    c.loss.bce_weight = 1.0  # of the pixels' binary cross-entropy
    c.loss.dice_weight = 1.0  # of 1 - Dice of the whole batch
    c.data.image_size = 0  # pixels of a side; 0: the encoder's own
    c.data.transform = "segment"
    c.data.hflip = 0.5  # as in the reference; the heart's side is then not learnt
    if "reference" not in presets:  # D34: the reference uses ImageNet's for all
        c.data.mean = c.data.std = ()  # the encoder's own
    c.data.degrees = 10.0  # maximum rotation
    c.optim.peak_lr = 1e-4
    c.optim.warmup_steps = 5 * EPOCH
    c.optim.weight_decay = 1e-4
    c.optim.decay = "all"  # as in the reference: biases too
    if "reference" in presets:
        c.optim.steps_per_epoch = EPOCH
    if "runlocal" in presets:
        base.runlocal(c, "masked", total_steps=200)
        c.model_init = "runs/demo/distill"
        c.data.hflip = 0.0
        c.global_batch_size = 64
        c.decoder.width = 64
        c.optim.peak_lr = 3e-3
        c.optim.warmup_steps = 20
        c.optim.steps_per_epoch = 0
    return c
