"""Fine-tunes an encoder on the labels of a CSV, for `pacx predict`.

  pacx train --config=configs/finetune.py --workdir=runs/finetune \\
      --config.model_init=ENCODER --config.data.path=DIR --config.data.csv=labels.csv

DIR holds JPEG, PNG or DICOM files. The CSV has a column of their paths, a column of 0
and 1 for each label, and maybe patient_id and split (docs/api.md has its rules). The
exported step has the best mean AUROC on validation patients; its probabilities are
calibrated and its thresholds chosen on these.
"""

from configs import base, linear_probe


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = linear_probe.get_config()
    c.name = "finetune"
    c.seed = 0
    c.tuning = "full"  # or linear: the encoder stays as it is
    c.global_batch_size = 32
    c.total_steps = 1000
    c.eval_every = c.save_every = c.log_every = 50
    c.data.source = "folder"
    c.data.val_fraction = 0.2  # of the patients: what calibration and thresholds need
    c.data.test_fraction = 0.2
    c.data.transform = "distill"
    c.data.hflip = 0.0  # the heart stays on the left
    c.optim.peak_lr = 1e-3  # of the head
    c.optim.encoder_lr_ratio = 0.05
    c.optim.warmup_steps = 50
    c.optim.weight_decay = 0.05
    if "runlocal" in presets:
        base.runlocal(c, "probe", total_steps=200)
        c.data.source = "prepared"  # which has splits of its own
        c.data.val_fraction, c.data.test_fraction = 0.1, 0.0
        c.model_init = "runs/demo/distill"
        c.data.label_columns = ("slvh_dlv", "heart_failure")
        c.global_batch_size = 64
        c.optim.warmup_steps = 20
    return c
