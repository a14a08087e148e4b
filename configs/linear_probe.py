"""Stage 3: a linear layer on a frozen encoder (docs/method.md).

  python -m pacx_jax.main --config=configs/linear_probe.py --workdir=runs/probe \\
      --config.model_init=runs/distill --config.data.path=DIR \\
      --config.data.label_columns='("Pneumonia",)'
"""

from configs import base


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "linear_probe", "classify"
    c.seed = 42
    c.global_batch_size = 512
    c.total_steps = 1000
    c.eval_every = c.save_every = 25
    c.log_every = 25
    c.best, c.best_mode, c.export = "val/auroc_macro", "max", "best"
    c.task = "multilabel"  # or multiclass
    c.tuning = "linear"  # or full
    c.drop_path = 0.0  # with full: of the last block's branches; grows over the depth
    c.mixup = 0.0  # alpha of Beta(alpha, alpha), by which pairs are mixed; 0: off
    c.undefined_auroc = "skip"  # for a label without both classes (D35); or zero
    c.data.image_size = 0  # pixels of a side; 0: the encoder's own
    c.data.transform = "probe"
    c.data.hflip = 0.5  # as in the reference; the heart's side is then no evidence
    if "reference" not in presets:  # D34: the reference uses ImageNet's for all
        c.data.mean = c.data.std = ()  # the encoder's own
    c.optim.peak_lr = 3e-3
    c.optim.weight_decay = 0.01
    if "paper" in presets:
        c.optim.weight_decay = 0.0  # of AdamW, times the rate; 0: Adam (D21)
        c.data.label_draw = "stratified"  # D27
    if "reference" in presets:
        c.data.uncertain = "reference"
        c.undefined_auroc = "zero"
    if "runlocal" in presets:
        base.runlocal(c, "probe", total_steps=200)
        c.model_init = "runs/demo/distill"
        c.data.label_columns = ("slvh_dlv", "heart_failure")
        c.data.hflip = 0.0  # the heart stays on the left
        c.global_batch_size = 128
    return c
