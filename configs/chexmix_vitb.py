"""CheXmix at the scale of a ViT-B: one transformer over image codes and report tokens.

arXiv 2604.22989, whose released model has 2.8 billion parameters; this one has 138
million of 12 blocks. First causally, then with masked inputs. docs/chexmix.md.

  python -m pacx_jax.main --config=configs/chexmix_vitb.py --workdir=runs/causal \\
      --config.data.path=prepared/mimic_cxr --config.data.tokenizer=tokenizer.json \\
      --config.vq_init=runs/vq
  python -m pacx_jax.main --config=configs/chexmix_vitb.py --workdir=runs/masked \\
      --config.data.path=prepared/mimic_cxr --config.data.tokenizer=tokenizer.json \\
      --config.stage=masked --config.model_init=runs/causal
  python -m pacx_jax.main --config=configs/chexmix_vitb.py:runlocal \\
      --workdir=runs/causal --config.vq_init=runs/vq
"""

from configs import base

EPOCH = 377_110 // 256  # images of MIMIC-CXR


def get_config(arg=None):
    """Arguments: see configs/base.py. Paper and authors' code give no other values."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "chexmix_vitb", "unified"
    c.dtype = "bfloat16"
    c.global_batch_size = 256
    c.mesh.fsdp = 1  # two fifths of the parameters are no block's, which it would split
    c.total_steps = 40 * EPOCH
    c.eval_every = c.save_every = EPOCH
    c.best = "val/loss"
    c.vq_init = ""  # the image tokenizer; "": that of model_init
    c.stage = "causal"  # or masked
    c.order = "both"  # drawn for each row; or image_first, text_first

    c.model = base.ml_collections.ConfigDict()
    c.model.variant = "B"
    c.model.ln_eps = 1e-6
    c.model.positions = "rotary"  # or learned
    c.model.tied = False  # output layer and table of embeddings
    c.model.layers = ()  # (first, last + 1) that embed; (): the middle third

    c.data.channels = 1
    c.data.mean, c.data.std = (0.5056,), (0.252,)
    c.data.transform = "mvmae"
    c.data.hflip = 0.0  # reports say left and right
    c.data.jitter = 0.1  # brightness and contrast change by up to this share
    c.data.crop_scale = (0.8, 1.0)
    c.data.tokenizer = ""  # a tokenizer.json
    c.data.report_length = 122  # tokens; with 196 codes, [IMG] and [/IMG] 320
    c.data.report_sections = ("findings", "impression")  # read in this order; or one

    c.loss = base.ml_collections.ConfigDict()
    c.loss.image_weight = 1.0  # of an image code in the mean over tokens
    c.loss.text_weight = 1.0  # of a report token in the mean over tokens
    c.loss.on = "all"  # or masked: the tokens that stage masked replaces
    c.loss.mask_image = (0.0, 0.9)  # shares that each row draws from, in stage masked
    c.loss.mask_text = (0.0, 0.5)  # likewise of the report's tokens, in stage masked

    c.optim.peak_lr = 3e-4
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.warmup_steps = EPOCH
    c.optim.min_ratio = 0.1
    if "runlocal" in presets:
        runlocal(c)
    return c


def runlocal(c):
    """A small model at 48 pixels on the embedded cohort."""
    base.runlocal(c, "mimic_cxr", total_steps=600)
    c.data.path = "runs/demo_chexmix/data/prepared/mimic_cxr"
    c.data.tokenizer = "runs/demo_chexmix/tokenizer.json"
    c.vq_init = "runs/demo_chexmix/vq"
    c.model.variant = "demo"
    c.data.image_size = 48
    c.data.report_length = 64
    c.global_batch_size = 32
    c.optim.peak_lr = 2e-3
    c.optim.warmup_steps = 60
