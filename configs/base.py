"""What all recipes share. A recipe is a diff of this.

A config's argument is a comma-separated list of presets, such as `:runlocal` or
`:reference,runlocal`:
  paper      follows the paper where it differs from the reference code
  reference  follows the authors' code
  runlocal   a real, small run on the embedded cohort, minutes on two CPU cores
Without a preset a recipe has the recommended values (docs/choices.md says why).
"""

import ml_collections

from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD

PRESETS = ("paper", "reference", "runlocal")


def parse(arg: str | None) -> set[str]:
    """The config argument as a set of preset names."""
    names = {name for name in (arg or "").split(",") if name}
    unknown = sorted(names - set(PRESETS))
    if unknown:
        raise ValueError(f"config argument {unknown}: choose of {', '.join(PRESETS)}")
    if {"paper", "reference"} <= names:
        raise ValueError("config argument: choose paper or reference, not both")
    return names


def get_config() -> ml_collections.ConfigDict:
    """Fields that every recipe has."""
    c = ml_collections.ConfigDict()
    c.name = ""  # of the recipe, as in prints and on model cards
    # mae, mvmae, vq, unified, labs_dae, ecg, distill, classify, segment, or a module
    c.objective = ""  # one of pacx_jax/objectives, or a module's dotted path
    c.seed = 0  # of weights, order of the data, augmentation, masks and dropout
    c.dtype = "float32"  # of matrix products; parameters and losses stay float32
    c.num_devices = 0  # 0: all
    c.global_batch_size = 256  # over all devices and hosts
    c.mesh = ml_collections.ConfigDict()  # docs/sharding.md
    c.mesh.fsdp = 0  # devices that share a layer's parameters; 0: from the model's size
    c.mesh.tensor = 1  # devices that share a layer's heads and hidden units
    c.accumulate = 1  # parts of a batch: the memory of one, the loss of the whole
    c.attention = "auto"  # or xla, pallas (our kernel for TPUs)
    c.remat = "none"  # what blocks compute again in the backward pass: or dots, full
    c.total_steps = 1000  # updates
    c.log_every = 50  # steps between rows of metrics.jsonl
    c.eval_every = 1000  # steps between evaluations on data.val_split
    c.images_every = 5  # evaluations between images in TensorBoard; 0: none
    c.wandb = ""  # project of Weights & Biases to log to (extra wandb); "": none
    c.save_every = 1000  # steps between checkpoints
    c.keep = 2  # number of latest checkpoints to keep
    c.best = ""  # metric that selects the best checkpoint, such as "val/loss"
    c.best_mode = "min"  # or max
    c.nonfinite = "stop"  # at a non-finite loss or gradient; or "skip" the step
    c.max_skipped = 10  # non-finite steps allowed in a run
    c.grace_seconds = 25.0  # to save the state after SIGTERM
    c.watchdog_seconds = 900.0  # dump stacks if a step takes longer; 0: off
    c.profile_steps = 0  # steps traced into WORKDIR/profile per session, from the third
    c.license = ""  # of the exported encoder, for its card
    c.export = "latest"  # checkpoint to export the encoder from
    c.model_init = ""  # folder of the weights to start from

    c.data = ml_collections.ConfigDict()
    c.data.source = "prepared"  # or "folder": a raw tree of images; "arrays": train()'s
    c.data.path = ""  # or several, as text: '("a", "b", "folder:c")'
    c.data.weights = "size"  # of several sets; or size^0.5, or text such as "(2, 1, 1)"
    c.data.stage = ""  # folder for the copy of a path in a bucket; "": PACX_SCRATCH
    c.data.train_split = "train"  # part of the data to train on
    c.data.val_split = "val"  # part to evaluate on during the run
    c.data.csv = ""  # for "folder"; "": labels.csv or .tsv in path
    c.data.label_columns = ()  # labels by name; (): all that the data have
    c.data.label_separator = "|"  # between the values of one cell, for "folder"
    c.data.patient_column = ""  # for "folder"; "": by its name; "-": none
    c.data.path_column = ""  # for "folder"; "": by its name
    c.data.split_column = ""  # for "folder"; "": by its name; "-": none
    c.data.val_fraction = 0.1  # if no split is given: by patient, else by file
    c.data.test_fraction = 0.0  # likewise
    c.data.uncertain = "ignore"  # the label -1; or zero, one, reference
    c.data.limit = 0  # 0: all examples
    c.data.label_fraction = 1.0  # of the training examples (D27)
    c.data.label_count = 0  # of the training examples, instead of the fraction; 0: off
    c.data.subset_list = ""  # or a file of the training images that keep their labels
    c.data.label_draw = "positives"  # one per label, then any; or stratified
    c.data.label_seed = 42  # which examples label_fraction or label_count draws
    c.data.group = "image"  # or "study": an example has all images of a visit
    c.data.max_views = 3  # of a study's images in a batch
    c.data.image_size = 224  # pixels of a side
    c.data.channels = 3  # grey is repeated; or 1
    c.data.mean, c.data.std = IMAGENET_MEAN, IMAGENET_STD  # of pixels from 0 to 1
    c.data.transform = ""  # the augmentation, which the recipe names
    c.data.hflip = 0.0  # probability of a mirror image, with the heart on the right
    c.data.crop_scale = (0.5, 1.0)  # shares of the area that random crops have
    c.data.ecg_decimate = 1  # samples averaged to one
    c.data.cache = False  # keep decoded examples in memory
    c.data.threads = 8  # threads that make batches
    c.data.workers = 0  # > 0: processes instead of threads make the training batches
    c.data.prefetch_to_device = 2  # batches on the devices ahead of the step
    c.data.max_bad_share = 0.01  # unreadable samples above this share stop the run
    c.data.simulated = False  # patients of the cohort, as the card then says
    c.data.namespace = ""  # of the patient ids; "": the prepared data set's
    c.data.allow_overlap = False  # allow probe patients that the encoder was trained on

    c.optim = ml_collections.ConfigDict()
    c.optim.peak_lr = 1e-3  # after the warm-up; then a cosine to min_ratio
    c.optim.base_batch_size = 0  # > 0: peak_lr is for this batch size and scales (D19)
    c.optim.warmup_steps = 0  # linear
    c.optim.warmup_from_zero = False  # else its first step has one step of the rise
    c.optim.warmup_start = 0.0  # the share of peak_lr that it starts from
    c.optim.min_ratio = 0.0  # of peak_lr, at the end
    c.optim.steps_per_epoch = 0  # > 0: the rate changes once an epoch
    c.optim.b1 = 0.9  # of AdamW: decay of the mean gradient
    c.optim.b2 = 0.999  # of AdamW: decay of the mean squared gradient
    c.optim.eps = 1e-8  # of AdamW: added to the root of the mean squared gradient
    c.optim.weight_decay = 0.0  # of AdamW, times the learning rate; 0: none
    c.optim.decay = "kernels"  # or "all": biases, norms and scalars too
    c.optim.clip_norm = 0.0  # 0: off
    c.optim.encoder_lr_ratio = 1.0  # share of the rate that a tuned encoder has
    c.optim.layer_decay = 1.0  # of the rate, from a block to the one before
    return c


def runlocal(c: ml_collections.ConfigDict, path: str, total_steps: int) -> None:
    """Settings that small runs on the embedded cohort share."""
    c.data.path = f"runs/demo/data/prepared/{path}"
    c.data.simulated = True
    c.data.cache = True
    c.data.threads = 1
    c.dtype = "float32"  # as fast as bfloat16 on CPU
    c.total_steps = total_steps
    c.log_every = max(total_steps // 50, 1)
    c.eval_every = max(total_steps // 5, 1)
    c.save_every = max(total_steps // 10, 1)


def vit(c: ml_collections.ConfigDict) -> None:
    """The published encoder, ViT-B/16 at 224 pixels."""
    c.model = ml_collections.ConfigDict()
    c.model.variant = "B"  # a size of pacx_jax/models/vit.py
    c.model.patch_size = 16  # pixels of a side
    c.model.ln_eps = 1e-6  # added to the variance in LayerNorms
    c.model.decoder = ml_collections.ConfigDict()
    c.model.decoder.width = 512  # channels of the decoder's tokens
    c.model.decoder.depth = 8  # blocks of the decoder
    c.model.decoder.num_heads = 16  # attention heads of a decoder block
