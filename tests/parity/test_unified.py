"""CheXmix's transformer and its loss against PyTorch with the same weights.

Bounds and precisions are those of test_models.py; `pytest -v` prints what is measured.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import objectives
from pacx_jax.models import text_loss, unified
from tests import stages, tiny
from tests.parity import comparing, sizes
from tests.reliability import runs


@pytest.mark.parametrize("name", ["unified", "unified_learned"])
def test_logits_layers_loss_and_gradients_equal(case, precision, measure, name):
    c, s = case(name), sizes.UNIFIED
    words = unified.Words(sizes.UNIFIED_TEXT, sizes.UNIFIED_CODES)
    assert words.size == s["vocab"]
    model = unified.Transformer(
        words.size, sizes.UNIFIED_LENGTH, s["d"], s["depth"], s["heads"],
        positions="rotary" if name == "unified" else "learned",
        tied=name == "unified_learned", dtype=jnp.dtype(precision.name),
    )  # fmt: skip
    tokens, weights = c.input("tokens"), jnp.array(sizes.UNIFIED_WEIGHTS)

    def run(params):
        of = {"params": params}
        hidden = model.apply(of, tokens, method="hidden")
        kernel = unified.output_kernel(params, model.tied)
        kinds = words.kinds(tokens[:, 1:])
        valid = jnp.stack([kinds == unified.IMAGE, kinds == unified.TEXT], -1)
        total, count = text_loss.chunked_cross_entropy(
            hidden[:, :-1], kernel, tokens[:, 1:], valid, chunk=7, dtype=precision.name
        )
        layers = model.apply(of, tokens, (0, s["depth"]), method="mean_layers")
        loss = (weights * total).sum() / (weights * count).sum()
        return loss, (model.apply(of, tokens), layers)

    params = c.params("unified")
    value = jax.jit(jax.value_and_grad(run, has_aux=True))
    (loss, (logits, layers)), grads = value(params)
    measure(f"{name} logits", logits, c.out("logits"), precision.forward)
    measure(f"{name} layers", layers, c.out("layers"), precision.forward)
    measure(f"{name} loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("unified", "loss")
    measure(f"{name} gradients", grads, want, precision.gradient, relative=True)


@pytest.mark.parametrize("order", ["image_first", "text_first"])
def test_the_benchs_peer_has_the_loss_of_a_step(order, measure, tmp_path):
    comparing.require_torch()
    import torch

    from launch.benchmarks import torch_unified

    folders = tiny.write_folders(tmp_path)
    objective = objectives.make(runs.config("causal", folders, order=order), None)
    params = tiny.random_start(objective) | {"vq": tiny.vq_folder().params}
    rng, text = np.random.default_rng(0), objective.readers[0].preprocessing
    examples = stages.batch("causal", 4) | {"report_present": np.ones(4, np.float32)}
    words = rng.integers(4, text["vocab_size"], (4, 16), dtype=np.int32)
    words[:, 0], words[:, -1] = text["start_id"], text["end_id"]
    examples["report_tokens"] = words
    value = jax.jit(lambda p, x: objective.loss(p, x, jax.random.key(0), train=False))
    want, _ = value(params, examples)

    names = ("widths", "blocks", "codes", "code_width")
    tokenizer = torch_unified.Tokenizer(*(tiny.VQ[name] for name in names))
    net = torch_unified.Unified(tokenizer, text["vocab_size"], 34, 32, 2, 2)
    net.load_state_dict({k: torch.tensor(v) for k, v in peers_state(params)})
    images = torch.tensor(examples["image"]).permute(0, 3, 1, 2).float() / 255
    first = torch.full((4,), order == "text_first")
    with torch.no_grad():
        loss = net((images - 0.5056) / 0.252, torch.tensor(words).long(), first)
    measure(f"loss of the peer, {order}", want, loss.numpy(), 1e-5)


def peers_state(params):
    """Names and arrays of the peer's state dict, of ours."""
    encoder, model = params["vq"]["encoder"], params["transformer"]
    yield "tokenizer.codes", params["vq"]["codebook"]["codes"]
    yield from plain("tokenizer.out", encoder["out"])
    order = ("down_0", "block_00", "down_1", "block_01", "norm")
    for i, name in enumerate(order):
        one = encoder[name]
        for part in one if "block" in name else ("",):
            at = f"tokenizer.layers.{i}{part and '.' + part}"
            yield from plain(at, one[part] if part else one)
    yield "token_embed.weight", model["token_embed"]["embedding"]
    for name in ("norm", "head"):
        yield from plain(name, model[name])
    for i in range(2):
        for name, one in model[f"block_{i:02d}"].items():
            for part in ("",) if name.startswith("norm") else one:
                at = f"blocks.{i}.{name}{part and '.' + part}"
                yield from plain(at, one[part] if part else one)


def plain(name, layer):
    """A convolution, dense layer or LayerNorm under PyTorch's names, in its order."""
    for key, value in layer.items():
        value = np.moveaxis(value, [-1, -2], [0, 1]) if key == "kernel" else value
        yield f"{name}.{'bias' if key == 'bias' else 'weight'}", np.array(value)
