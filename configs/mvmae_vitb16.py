"""MVMAE: masked autoencoder over all views of a study, which are aligned.

arXiv 2511.22294; 500 epochs, here of MIMIC-CXR's 222,758 training studies at a global
batch of 256 studies of up to three views. docs/mvmae.md compares paper and code.

  python data/prepare.py mimic_cxr --source=DIR --target=prepared/mimic_cxr --size=256
  python -m pacx_jax.main --config=configs/mvmae_vitb16.py --workdir=runs/mvmae \\
      --config.data.path=prepared/mimic_cxr
  python -m pacx_jax.main --config=configs/mvmae_vitb16.py:runlocal \\
      --workdir=runs/mvmae

Without alignment (the paper's "Independent"): --config.loss.beta=0. With reports as
supervision: configs/mvmae_v2t_vitb16.py.
"""

from configs import base

EPOCH = 222_758 // 256


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    base.vit(c)
    c.name, c.objective = "mvmae_vitb16", "mvmae"
    c.dtype = "bfloat16"
    c.global_batch_size = 256  # studies
    c.total_steps = 500 * EPOCH
    c.eval_every = c.save_every = 5 * EPOCH
    c.best = "val/loss"
    c.model_init_parts = ("encoder", "decoder")  # taken from model_init

    c.model.channels = 1  # of the images, as in data.channels
    c.model.qk_norm = True  # LayerNorm of each head's queries and keys
    c.model.posemb = "learned"  # positions of the patches; or sincos
    c.model.posemb_cls = False  # whether CLS has a learned position too
    c.model.views = 3  # frontal, lateral, unknown
    c.model.decoder.update(width=768, depth=4, num_heads=12)
    c.model.decoder.posemb = "learned"  # positions of its tokens; or sincos
    c.model.decoder.project = False  # its tokens are the encoder's, of the same width

    c.data.group = "study"
    c.data.channels = 1
    c.data.mean, c.data.std = (0.5056,), (0.252,)
    c.data.transform = "mvmae"
    c.data.hflip = 0.5
    c.data.jitter = 0.4  # brightness and contrast change by up to this share

    c.loss = base.ml_collections.ConfigDict()
    c.loss.mask_ratio = 0.9
    c.loss.norm_pix_loss = False  # True: each patch against its own mean and std
    c.loss.reconstruction_weight = 1.0  # of the squared error of hidden patches
    c.loss.reconstruction_reduction = "views"  # or max_views: missing ones count as 0
    c.loss.beta = 2.0  # of the alignment, at the end; 0: independent views
    c.loss.beta_schedule = "sigmoid"  # or linear, constant
    c.loss.beta_steepness = 10.0  # of the sigmoid; higher: beta rises faster midway
    c.loss.align = "mse"  # or cosine, infonce
    c.loss.align_tokens = "mean_all"  # or cls, mean_patches
    c.loss.align_reduction = "pairs"  # or views_squared
    c.loss.align_by_visible = True  # divide by 1 - mask_ratio
    c.loss.temperature = 0.5  # of infonce

    c.caption = base.ml_collections.ConfigDict()
    c.caption.weight = 0.0  # of the reports' cross-entropy; 0: no text decoder

    c.optim.peak_lr = 1.2e-4
    c.optim.base_batch_size = 256
    c.optim.b2 = 0.999
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0
    c.optim.warmup_steps = 5 * EPOCH
    c.optim.warmup_start = 0.5
    if "reference" in presets:
        c.loss.mask_ratio = 0.93
        c.loss.reconstruction_reduction = "max_views"
        c.loss.align_reduction = "views_squared"
        c.loss.align_by_visible = False
    if "runlocal" in presets:
        runlocal(c)
    return c


def runlocal(c):
    """A small ViT at 48 pixels on the embedded cohort."""
    base.runlocal(c, "mimic_cxr", total_steps=1200)
    c.data.path = "runs/demo_mvmae/data/prepared/mimic_cxr"
    c.model.variant, c.model.patch_size = "demo", 8
    c.model.decoder.update(width=64, depth=2, num_heads=2, project=True)
    c.data.image_size = 48
    c.loss.mask_ratio = 0.75  # 9 of 36 patches are seen; 0.9 leaves 4
    c.data.hflip = 0.0  # the heart stays on the left
    c.data.crop_scale = (0.7, 1.0)
    c.data.max_views = 2
    c.global_batch_size = 32
    c.optim.base_batch_size = 0
    c.optim.peak_lr = 2e-3
    c.optim.warmup_steps = 60
