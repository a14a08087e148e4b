"""Small configs, model folders and batches that tests share."""

from __future__ import annotations

import dataclasses
import functools
import importlib

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pacx_jax.encoders import model_folder
from pacx_jax.input import tokenizer
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD
from pacx_jax.models import unified, unified_encoder
from tests import report_sets

VIT = {
    "patch_size": 8,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "ln_eps": 1e-6,
    "image_size": 32,
}
ECG = {
    "base_filters": 8,
    "filters": [8, 16],
    "blocks": [1, 1],
    "kernel": 4,
    "groups_width": 8,
}
VQ = {
    "image_size": 16,
    "channels": 1,
    "widths": [8, 8],
    "blocks": [1, 1],
    "codes": 16,
    "code_width": 8,
}
LABS = {"features": 50, "hidden": 16, "latent": 8, "mask_inputs": True}


def config(recipe: str, arg: str | None = None, **fields) -> ml_collections.ConfigDict:
    """A recipe's config with fields set by dotted name (dots as double underscores)."""
    c = importlib.import_module(f"configs.{recipe}").get_config(arg)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def randomized(params, seed: int, scale: float = 0.3):
    """The same tree with noise on every leaf, so that no bias is 0 and no scale 1."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: np.asarray(p + scale * rng.normal(size=p.shape), np.float32), params
    )


def random_tree(shapes, seed: int = 0, noise: float = 0.3):
    """Random parameters of a tree of shapes, without compiling anything.

    Kernels have the variance 1 / fan-in; scales are near 1, everything else near 0,
    give or take `noise`. LoRA's b is small but not zero, as in training: with b = 0,
    a would have no gradient.
    """
    rng = np.random.default_rng(seed)
    tree = {}
    for name, shape in sorted(flat(shapes).items()):
        x = rng.normal(size=shape.shape)
        if name.endswith(("kernel", "/a")):
            x = x / np.sqrt(np.prod(shape.shape[:-1]))
        elif name.endswith("/b"):
            x = 0.02 * x
        else:
            x = noise * x + name.endswith("scale")
        tree[name] = x.astype(np.float32)
    if "logit_scale" in tree:
        tree["logit_scale"] = np.float32(np.log(1 / 0.07))
    return unflat(tree)


def random_params(model, *args, seed: int = 0, noise: float = 0.3):
    """`random_tree` of a linen model."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return random_tree(shapes["params"], seed, noise)


def random_start(objective, seed: int = 0):
    """`random_tree` of all parameters of an objective."""
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return random_tree(shapes, seed, 0.05)


def folder(kind: str, seed: int = 0) -> model_folder.ModelFolder:
    """A model folder's content with random weights."""
    architecture = {"vit": VIT, "ecg_net1d": ECG, "labs_dae": LABS}[kind]
    preprocessing = {
        "vit": model_folder.image_preprocessing(IMAGENET_MEAN, IMAGENET_STD),
        "ecg_net1d": {"sampling_rate": 500, "decimate": 1},
        "labs_dae": {},
    }[kind]
    empty = model_folder.ModelFolder(kind, architecture, preprocessing, {})
    args = {
        "vit": (jnp.zeros((1, 32, 32, 3)),),
        "ecg_net1d": (jnp.zeros((1, 64, 12)),),
        "labs_dae": (jnp.zeros((1, 50)), jnp.zeros((1, 50))),
    }[kind]
    params = random_params(empty.module(), *args, seed=seed, noise=0.05)
    return model_folder.ModelFolder(kind, architecture, preprocessing, params)


def vq_folder(seed: int = 0) -> model_folder.ModelFolder:
    """An image tokenizer with random weights: 16 codes of 4 pixels a side, grey."""
    about = model_folder.image_preprocessing((0.5056,), (0.252,))
    empty = model_folder.ModelFolder("vq", VQ, about, {})
    params = random_params(empty.module(), jnp.zeros((1, 16, 16, 1)), seed=seed)
    codes = params["codebook"]["codes"]
    codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
    return dataclasses.replace(empty, params=params)


def unified_folder(words: tokenizer.Tokenizer, seed: int = 0):
    """A model of X-rays and reports with random weights, texts of 16 tokens."""
    shared = unified.Words(words.vocab_size, VQ["codes"])
    model = unified.Transformer(shared.size, 16 + 2 + 16, 32, 2, 2)
    about = vq_folder().preprocessing | {
        "report": {"sha256": words.sha256, "length": 16, "sections": ["impression"]}
    }
    architecture = unified_encoder.architecture(VQ, shared, model, (0, 1))
    transformer = random_params(model, jnp.zeros((1, 2), int), seed=seed)
    params = {"vq": vq_folder().params, "transformer": transformer}
    return model_folder.ModelFolder("unified", architecture, about, params)


MVMAE = {
    "channels": 1,
    "qk_norm": True,
    "posemb_cls": False,
    "posemb_grid": [4, 4],
    "views": 3,
    "final_ln_eps": 1e-5,
}


def mvmae_folder(seed: int = 0) -> model_folder.ModelFolder:
    """An encoder of MVMAE's kind with random weights: views, grey images."""
    preprocessing = model_folder.image_preprocessing((0.5056,), (0.252,))
    empty = model_folder.ModelFolder("vit", VIT | MVMAE, preprocessing, {})
    image = jnp.zeros((1, 32, 32, 1))
    params = random_params(empty.module(), image, seed=seed, noise=0.3)
    return dataclasses.replace(empty, params=params)


# Other people's encoders, by the kind of checkpoint that they come as.
FOREIGN = {
    "dinov2": {
        "posemb_grid": [4, 4],
        "posemb_resampling": "offset",
        "layer_scale": True,
    },
    "dinov2_hf": {
        "posemb_grid": [4, 4],
        "layer_scale": True,
        "registers": 3,
        "swiglu": True,
        "mlp_dim": 24,
    },
    "eva02": {
        "posemb_grid": [4, 4],
        "swiglu": True,
        "mlp_dim": 20,
        "mlp_norm": True,
        "rotary_grid": [3, 3],
        "pool": "mean",
    },
}


def foreign_folder(kind: str, seed: int = 0, **fields) -> model_folder.ModelFolder:
    """One of FOREIGN, with random weights; k has no bias, which EVA-02 has no key for.

    Args:
      fields: of the architecture.
    """
    a = VIT | FOREIGN[kind] | fields
    about = model_folder.image_preprocessing(
        (0.53,) * 3, (0.26,) * 3, a.get("pool", "cls")
    )
    empty = model_folder.ModelFolder("vit", a, about, {})
    image = jnp.zeros((1, 32, 32, a.get("channels", 3)))
    params = random_params(empty.module(), image, seed=seed, noise=0.3)
    for i in range(a["depth"]):
        bias = params[f"block_{i:02d}"]["attn"]["qkv"]["bias"]
        bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
    return dataclasses.replace(empty, params=params)


DENSENET = {
    "image_size": 224,
    "channels": 1,
    "patch_size": 8,
    "stem": 6,
    "growth": 3,
    "blocks": [2, 1],
}


def densenet_folder(channels: int = 1, seed: int = 0) -> model_folder.ModelFolder:
    """A DenseNet of width 9 with random weights; grey as torchxrayvision's."""
    mean, std = (
        ((0.5,), (1 / 2048,)) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    )
    about = model_folder.image_preprocessing(mean, std)
    about["embedding"] = "mean of the last feature map, after its batch norm and ReLU"
    a = DENSENET | {"channels": channels}
    empty = model_folder.ModelFolder("densenet", a, about, {})
    params = random_params(empty.module(), jnp.zeros((1, 32, 32, channels)), seed=seed)
    params = {
        k: np.abs(v) if k.endswith("/var") else v for k, v in flat(params).items()
    }
    return dataclasses.replace(empty, params=unflat(params))


def write_folders(path) -> dict[str, str]:
    """Writes one folder of each kind; returns the config fields that name them."""
    names = {"model_init": "vit", "modalities__ecg__init": "ecg_net1d"}
    names["modalities__labs__init"] = "labs_dae"
    for i, kind in enumerate(names.values()):
        model_folder.save(path / kind, folder(kind, i), card="a test's")
    model_folder.save(path / "image_tokenizer", vq_folder(), card="a test's")
    write_tokenizer(path / "tokenizer.json")
    return {field: str(path / kind) for field, kind in names.items()}


def write_tokenizer(path) -> None:
    """Writes a tokenizer of the reports of `report_sets`, without a sidecar."""
    tokenizer.train(report_sets.texts(200), 1000).save(str(path))


def distill_config(folders: dict[str, str], **fields) -> ml_collections.ConfigDict:
    """Distillation at "mu" size, dropout on, every term of the objective active."""
    small = {
        "dtype": "float32",
        "global_batch_size": 16,
        "data__image_size": 32,
        "heads__shared_dim": 16,
        "lora__rank": 4,
        "total_steps": 20,
        "optim__warmup_steps": 5,
        "optim__peak_lr": 1e-3,
    }
    return config("distill_vitb16", **(small | folders | fields))


def image_batch(b: int, seed: int) -> dict[str, np.ndarray]:
    """Images, and embeddings that are no encoder's."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (b, 32, 32, 3), dtype=np.uint8),
        "ecg_embedding": rng.normal(size=(b, 16)),
        "labs_embedding": rng.normal(size=(b, 8)),
    }


@functools.cache
def distill_batch(b: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images, raw physiology, and its embeddings by the folders of `write_folders`."""
    rng = np.random.default_rng(seed)
    mask = (rng.random((b, 50)) < 0.8).astype(np.float32)
    batch = {
        "image": rng.integers(0, 256, (b, 32, 32, 3), dtype=np.uint8),
        "ecg": rng.normal(size=(b, 64, 12)).astype(np.float32),
        "labs": rng.random((b, 50)).astype(np.float32),
        "labs_mask": mask,
    }
    ecg, labs = folder("ecg_net1d", 1), folder("labs_dae", 2)
    batch["ecg_embedding"] = np.asarray(
        jax.jit(ecg.module().apply)({"params": ecg.params}, batch["ecg"])
    )
    batch["labs_embedding"] = np.asarray(
        jax.jit(labs.module().apply)({"params": labs.params}, batch["labs"], mask)
    )
    return batch


def count(tree) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def flat(tree) -> dict:
    """Slash-joined path -> leaf."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def relative(a, b) -> float:
    """|a - b| / |b| of two arrays, by their Euclidean norms."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))


def worst(got, want) -> float:
    """Largest absolute difference, in units of the largest value of `want`."""
    want = np.asarray(want, np.float64)
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())


def unflat(tree: dict):
    """Inverse of `flat`."""
    return flax.traverse_util.unflatten_dict(tree, sep="/")


def copy_of(config) -> ml_collections.ConfigDict:
    """A config that can be changed without changing the other."""
    return ml_collections.ConfigDict(config.to_dict())
