"""Stage 1, ECG: Net1D on multi-label diagnoses, as ECGFounder was pretrained.

The published encoder is converted from PyTorch; this recipe trains one from 12-lead
records with labels.

  python -m pacx_jax.main --config=configs/ecg_net1d.py --workdir=runs/ecg \\
      --config.data.path=DIR --config.data.label_columns='("AF","LBBB")'
"""

from configs import base


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "ecg_net1d", "ecg"
    c.dtype = "bfloat16"
    c.total_steps = 100_000
    c.eval_every = c.save_every = 2_000
    c.best, c.best_mode = "val/auroc_macro", "max"
    c.export = "best"
    c.model = base.ml_collections.ConfigDict()
    c.model.base_filters = 64  # channels of the first convolution
    c.model.filters = (64, 160, 160, 400, 400, 1024, 1024)  # channels of each stage
    c.model.blocks = (2, 2, 2, 3, 3, 4, 4)  # residual blocks of each stage
    c.model.kernel = 16  # length of the first and of the grouped convolutions
    c.model.groups_width = 16  # channels of a group in the grouped convolutions
    c.optim.peak_lr = 1e-3
    c.optim.weight_decay = 1e-4
    c.optim.warmup_steps = 1_000
    if "runlocal" in presets:
        base.runlocal(c, "ecg", total_steps=300)
        c.global_batch_size = 64
        c.model.base_filters = 16
        c.model.filters = (16, 32, 32, 64, 64)
        c.model.blocks = (1, 1, 1, 1, 1)
        c.data.ecg_decimate = 5
        c.optim.peak_lr = 3e-3
        c.optim.warmup_steps = 30
    return c
