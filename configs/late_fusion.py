"""Stage 3 of studies: a study's logits are the mean over its views (arXiv 2511.22294).

A linear layer on a frozen encoder, or all of it (`tuning="full"`), and any budget of
labels: MVMAE reports 5,000, 10,000, 50,000 and all.

  python -m pacx_jax.main --config=configs/late_fusion.py --workdir=runs/late_fusion \\
      --config.model_init=runs/mvmae --config.data.path=prepared/mimic_cxr \\
      --config.data.label_count=5000

`--evaluate=test` measures with one view, with two and with all.
"""

from configs import base, linear_probe


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    c = linear_probe.get_config(arg)
    c.name = "late_fusion"
    c.data.group = "study"
    c.data.max_views = 3  # of a study, the others are left out
    c.data.channels = 1  # MVMAE's encoders; 3 for others
    c.data.label_count = 0  # all
    if "runlocal" in base.parse(arg):
        c.data.path = "runs/demo_mvmae/data/prepared/views_probe"
        c.model_init = "runs/demo_mvmae/mvmae"
        c.data.label_columns = ("retrocardiac_opacity", "effusion")
        c.data.label_count = 200
    return c
