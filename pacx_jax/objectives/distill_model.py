"""The model of Stage 2: encoder, adapters, frozen teachers and projection heads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from pacx_jax import lora, losses, sharding
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.input.normalize import normalize
from pacx_jax.modalities import teachers
from pacx_jax.models import unified_encoder, vit
from pacx_jax.models.heads import Head
from pacx_jax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Parts:
    """Modules of Stage 2, and its forward pass as pure functions of parameters.

    Attributes:
      config: the run's config.
      encoder: the X-ray encoder.
      teachers: modality -> its frozen embeddings.
      heads: name -> head; "cxr_to_shared", "ecg_to_shared", "cxr_to_ecg", ...
    """

    config: ml_collections.ConfigDict
    encoder: vit.ViT | unified_encoder.Encoder
    teachers: dict[str, teachers.Teacher]
    heads: dict[str, Head]

    def init(self, key: jax.Array) -> Params:
        """All parameters: encoder, lora, heads, logit_scale and, in_graph, teachers."""
        config, size = self.config, self.config.data.image_size
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, size, size, self.encoder.channels))
        params = {"encoder": self.encoder.init(keys[0], image)["params"], "heads": {}}
        if config.tuning == "lora":
            flat = flax.traverse_util.flatten_dict(params["encoder"], sep="/")
            read = {k: v for k, v in flat.items() if reads(self.encoder, k)}
            read = flax.traverse_util.unflatten_dict(read, sep="/")
            params["lora"] = lora.init(
                keys[1], read, config.lora.targets, config.lora.rank
            )
        for i, (name, head) in enumerate(self.heads.items()):
            k = jax.random.fold_in(keys[2], i)
            modality = _of_head(name)
            of = self.encoder if modality == "cxr" else self.teachers[modality]
            z = jnp.zeros((1, of.width))
            params["heads"][name] = head.init(k, z, train=False)["params"]
        params["logit_scale"] = jnp.asarray(-math.log(config.loss.temperature))
        if config.physiology == "in_graph":
            for m, teacher in self.teachers.items():
                weights = teacher.folder.params
                params[f"{m}_encoder"] = jax.tree.map(jnp.asarray, weights)
        return params

    def forward(self, params: Params, batch: Batch, key: jax.Array, train: bool):
        """Embedding (b, d), frozen ones {m: (b, d_m)}, heads' outputs {name}."""
        lora_key, head_key = jax.random.split(key)
        z = self.embed_in_chunks(params, batch, lora_key, train)
        targets = jax.lax.stop_gradient(self.targets(params, batch))
        out = {}
        for i, (name, head) in enumerate(self.heads.items()):
            modality = _of_head(name)
            x = z if modality == "cxr" else targets[modality]
            rngs = {"dropout": jax.random.fold_in(head_key, i)}
            weights = {"params": params["heads"][name]}
            out[name] = head.apply(weights, x, train=train, rngs=rngs)
        return z, targets, out

    def embed_in_chunks(self, params, batch, key, train) -> Array:
        """Runs `embed` on `config.encoder_chunks` parts of a batch in turn.

        The backward pass computes each part again, so activations take the memory of
        one. The loss sees all embeddings (Gao 2021, GradCache): loss and gradient are
        those of the whole batch.
        """
        rows, count = sharding.row_numbers(batch), self.config.get("encoder_chunks", 1)
        if count == 1:
            return self.embed(params, batch["image"], rows, key, train)

        @jax.checkpoint
        def one(part):
            rows = part["row_numbers"]
            return self.embed(params, part["image"], rows, key, train)

        images = {"image": batch["image"], "row_numbers": rows}
        parts = sharding.split_rows(images, count)
        return sharding.join_rows(jax.lax.map(one, parts))

    def embed(self, params, images, rows, key, train) -> Array:
        """uint8 images (b, h, w, c) -> embedding (b, d), with any adapters.

        `rows` (b,) are the images' numbers in the global batch, for dropout.
        """
        config = self.config
        images = normalize(images, config.data.mean, config.data.std)
        context = contextlib.nullcontext()
        if config.tuning == "lora":
            context = lora.applied(
                params["lora"],
                alpha=config.lora.alpha,
                dropout=config.lora.dropout if train else 0.0,
                key=key,
                rows=rows,
            )
        with context:
            variables = {"params": params["encoder"]}
            tokens = self.encoder.apply(variables, images, cls_only=True)
        return losses.wide(tokens[:, 0])

    def targets(self, params, batch) -> dict[str, Array]:
        """The frozen embeddings, from the batch or from their encoders in the graph."""
        if self.config.physiology == "cached":
            return {m: batch[f"{m}_embedding"] for m in self.teachers}
        return {
            m: teacher.embed(params[f"{m}_encoder"], batch)
            for m, teacher in self.teachers.items()
        }


def _of_head(name: str) -> str:
    """The modality a head reads: "cxr_to_ecg" -> "cxr"."""
    return name.partition("_to_")[0]


def module_of(folder: ModelFolder, config) -> nn.Module:
    """The encoder's module, in the config's dtype and its ways of computing."""
    module, ways = folder.module(config.dtype), vit.ways(config)
    if isinstance(module, unified_encoder.Encoder):  # its image tokenizer has none
        return module.clone(transformer=module.transformer.clone(**ways))
    return module.clone(**ways)


def reads(encoder: nn.Module, path: str) -> bool:
    """Whether the embedding has a gradient for the encoder's parameter of this path."""
    return not isinstance(encoder, unified_encoder.Encoder) or encoder.reads(path)


def heads_of(config, widths: dict[str, int]) -> dict[str, Head]:
    kind, dropout = config.heads.kind, config.heads.dropout
    sizes = {"cxr_to_shared": config.heads.shared_dim}
    for m, width in widths.items():
        sizes |= {f"{m}_to_shared": config.heads.shared_dim, f"cxr_to_{m}": width}
    return {name: Head(d, kind, dropout) for name, d in sizes.items()}


def trainable(config, depth: int, read: Callable[[str], bool] = lambda path: True):
    """Path predicate of `tuning` and `train_norms` (D2).

    `train_norms` applies to lora and norms; "all" has those of q, k and the MLP too.
    last_n_blocks trains these blocks and the final norm, like the reference; full
    trains everything. Of the encoder no more than what `read` says of its paths, which
    for a unified model are below transformer/.
    """
    blocks, final = r"encoder/(transformer/)?block_", r"encoder/norm/.*"
    norms = {"all": rf"{blocks}\d+/(norm\d|attn/[qk]_norm|mlp/norm)/.*|{final}",
             "final": final,
             "none": r"(?!)"}[config.train_norms]  # fmt: skip
    patterns = [r"heads/.*", r"lora/.*"]
    if config.tuning in ("lora", "norms"):
        patterns.append(norms)
    if config.loss.learn_temperature:
        patterns.append(r"logit_scale")
    if config.tuning == "full":
        patterns.append(r"encoder/.*")
    if config.tuning == "last_n_blocks":
        last = range(max(depth - config.last_n_blocks, 0), depth)
        patterns += [rf"{blocks}{i:02d}/.*" for i in last]
        patterns.append(final)
    matcher = re.compile("|".join(f"(?:{p})" for p in patterns))

    def chosen(path: str) -> bool:
        part, _, rest = path.partition("/")
        return bool(matcher.fullmatch(path)) and (part != "encoder" or read(rest))

    return chosen
