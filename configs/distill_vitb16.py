"""Stage 2: LoRA distillation of ECG and lab embeddings into the X-ray encoder.

PaCX-MAE, arXiv 2606.01537, section 3.2; 50 epochs of 10,000 Symile-MIMIC triplets at a
global batch of 128.

  python -m pacx_jax.main --config=configs/distill_vitb16.py --workdir=runs/distill \\
      --config.data.path=DIR --config.model_init=runs/mae \\
      --config.modalities.ecg.init=runs/ecg --config.modalities.labs.init=runs/labs

Table 3's ablations: --config.loss.clip_weight=0, --config.loss.regression_weight=0, and
without one modality --config.modalities.labs.clip_weight=0
--config.modalities.labs.regression_weight=0. Further modalities, such as vitals or a
table of embeddings (teacher), have weights of 0 by default.
"""

from configs import base

EPOCH = 10_000 // 128


def get_config(arg=None):
    """Arguments: see configs/base.py."""
    presets = base.parse(arg)
    c = base.get_config()
    c.name, c.objective = "distill_vitb16", "distill"
    c.dtype = "bfloat16"
    c.seed = 42
    c.global_batch_size = 128
    c.total_steps = 50 * EPOCH
    c.eval_every = c.save_every = EPOCH
    c.best, c.best_mode, c.export = "val/loss", "min", "best"

    c.modalities = base.ml_collections.ConfigDict()
    for name, weight in (
        ("ecg", 1.0),
        ("labs", 1.0),
        ("vitals", 0.0),
        ("teacher", 0.0),
    ):
        m = c.modalities[name] = base.ml_collections.ConfigDict()
        m.init = ""  # an encoder's folder, a workdir, or an .npz of id and embedding
        m.clip_weight = weight  # in the mean over modalities; leave out: both 0
        m.regression_weight = weight  # in the mean of 1 - cosine over modalities
        m.by = "patient"  # what an .npz's ids name: patient, study or image
        m.module = ""  # dotted path of a modality outside of the library
    c.physiology = "cached"  # embeddings computed once; or "in_graph", every step
    c.cache_dir = ""  # "": WORKDIR/cache
    c.ln_eps = 0.0  # 0: from the encoder's folder (D6)

    c.encoder_chunks = 1  # parts of a batch in the encoder, exact; docs/sharding.md
    c.tuning = "lora"  # or last_n_blocks, full, norms
    c.last_n_blocks = 4  # number of blocks that tuning last_n_blocks trains
    c.train_norms = "all"  # D2; or final, none
    c.lora = base.ml_collections.ConfigDict()
    c.lora.targets = ("qkv", "fc1", "fc2")  # layers with adapters; also proj
    c.lora.rank = 8  # of an adapter
    c.lora.alpha = 16.0  # adapters are scaled by alpha / rank (D3)
    c.lora.dropout = 0.1  # rate on an adapter's input
    c.heads = base.ml_collections.ConfigDict()
    c.heads.kind = "linear_ln"  # with a LayerNorm; or linear (D5)
    c.heads.dropout = 0.2  # rate on a head's input
    c.heads.shared_dim = 256  # width of the embeddings that InfoNCE compares
    c.loss = base.ml_collections.ConfigDict()
    c.loss.clip_weight = 0.5  # of InfoNCE
    c.loss.regression_weight = 1.0  # of 1 - cosine to the frozen embeddings
    c.loss.reduction = "mean"  # over modalities (D15); or half_sum
    c.loss.temperature = 0.07  # of InfoNCE, at the start
    c.loss.learn_temperature = True  # False: loss.temperature stays as it is
    c.loss.label_smoothing = 0.02  # of InfoNCE's targets; 0: none
    c.loss.chunk = 0  # logit columns that exist at a time; 0: all

    c.data.transform = "distill"  # never flips: the heart stays on the left
    c.data.shuffle_pairs = False  # control: breaks the pairing of the modalities
    c.data.shuffle_within = ()  # columns of shuffle_table whose groups pairs stay in
    c.data.shuffle_table = ""  # CSV with a column of hadm_id, path or subject_id
    c.optim.peak_lr = 1e-4
    c.optim.weight_decay = 0.05
    c.optim.min_ratio = 0.01
    c.optim.warmup_steps = 5 * EPOCH
    c.optim.clip_norm = 1.0
    if "paper" in presets:
        c.lora.alpha = 8.0
        c.heads.kind = "linear"
        c.loss.reduction = "half_sum"
    if "reference" in presets:
        c.train_norms = "final"
        c.ln_eps = 1e-5
        c.optim.decay = "all"
        c.optim.steps_per_epoch = EPOCH
    if "runlocal" in presets:
        base.runlocal(c, "symile_mimic", total_steps=1250)
        c.model_init = "runs/demo/mae"
        c.modalities.ecg.init = "runs/demo/ecg"
        c.modalities.labs.init = "runs/demo/labs"
        c.data.image_size = 48
        c.global_batch_size = 32
        c.lora.dropout = 0.0
        c.optim.peak_lr = 2e-3
        c.optim.warmup_steps = 60
        c.optim.steps_per_epoch = 0
    return c
