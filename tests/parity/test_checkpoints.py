"""The PyTorch modules have the published checkpoints' names, shapes and sizes.

What they are at the published sizes, made on the meta device (no memory, no draws), and
that every name has its place in our parameter trees.
"""

import pathlib

import numpy as np
import pytest

from tests import tiny
from tests.parity import comparing, weights

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "models" / "golden"
BLOCK = [
    f"{name}.{kind}"
    for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]


@pytest.fixture(scope="module")
def torch_of():
    """Name -> a module at its published size, on the meta device."""
    comparing.require_torch()
    import torch

    from tests.parity import torch_modules as tm
    from tests.parity import torch_stage_two as ts

    base = {"patch": 16, "d": 768, "depth": 12, "heads": 12}

    def encoder():
        return tm.Encoder((14, 14), **base)

    makers = {
        "mae": lambda: tm.Lightning(
            tm.MAE((14, 14), **base, dec_d=512, dec_depth=8, dec_heads=16)
        ),
        "labs": lambda: tm.Lightning(tm.LabsDAE()),
        "ecg": tm.Net1D,
        "pacx": lambda: ts.Pacx(encoder()),
        "classifier": lambda: tm.Lightning(tm.Classifier(encoder(), 14)),
        "segmenter": lambda: tm.Lightning(tm.Segmenter(encoder(), (14, 14)), True),
    }

    def make(name):
        with torch.device("meta"):
            return makers[name]()

    return make


def shapes(module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def total(module, trainable=False) -> int:
    return sum(p.numel() for p in module.parameters()
               if p.requires_grad or not trainable)  # fmt: skip


def encoder_names(prefix: str, depth: int = 12) -> list[str]:
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight",
             "patch_embed.proj.bias"]  # fmt: skip
    names += [f"blocks.{i}.{name}" for i in range(depth) for name in BLOCK]
    return [prefix + n for n in [*names, "norm.weight", "norm.bias"]]


def test_net1d_has_the_509_published_names_and_shapes_in_order(torch_of):
    lines = (HERE / "ecgfounder_state_dict.txt").read_text().splitlines()
    got = [f"{k} {v}" for k, v in shapes(torch_of("ecg")).items()]
    assert len(lines) == 509
    assert got == lines


def test_mae_has_the_published_names_in_order(torch_of):
    names = encoder_names("")
    names[2:2] = ["mask_token", "decoder_pos_embed"]
    names += ["decoder_embed.weight", "decoder_embed.bias"]
    names += [f"decoder_blocks.{i}.{name}" for i in range(8) for name in BLOCK]
    for layer in ("decoder_norm", "decoder_pred"):
        names += [f"{layer}.weight", f"{layer}.bias"]
    assert list(shapes(torch_of("mae"))) == ["model." + n for n in names]


def test_mae_has_the_published_shapes(torch_of):
    got = shapes(torch_of("mae"))
    want = {
        "cls_token": (1, 1, 768), "pos_embed": (1, 197, 768),
        "mask_token": (1, 1, 512), "decoder_pos_embed": (1, 197, 512),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.0.mlp.fc1.weight": (3072, 768), "blocks.0.mlp.fc2.weight": (768, 3072),
        "decoder_embed.weight": (512, 768),
        "decoder_blocks.7.attn.qkv.weight": (1536, 512),
        "decoder_blocks.7.mlp.fc1.weight": (2048, 512),
        "decoder_pred.weight": (768, 512),
    }  # fmt: skip
    assert {k: got["model." + k] for k in want} == want


def test_labs_autoencoder_has_the_published_names_and_shapes(torch_of):
    assert shapes(torch_of("labs")) == {
        "model.encoder.0.weight": (512, 100), "model.encoder.0.bias": (512,),
        "model.encoder.1.weight": (512,), "model.encoder.1.bias": (512,),
        "model.encoder.3.weight": (256, 512), "model.encoder.3.bias": (256,),
        "model.decoder.0.weight": (512, 256), "model.decoder.0.bias": (512,),
        "model.decoder.2.weight": (50, 512), "model.decoder.2.bias": (50,),
    }  # fmt: skip


def test_pacx_has_the_published_names(torch_of):
    prefix = "cxr_encoder.base_model.model."
    names = set()
    for name in encoder_names(prefix):
        module, kind = name.rsplit(".", 1)
        if module.endswith(("qkv", "fc1", "fc2")):
            names |= {f"{module}.base_layer.{kind}", f"{module}.lora_A.default.weight",
                      f"{module}.lora_B.default.weight"}  # fmt: skip
        else:
            names.add(name)
    heads = ("cxr_to_shared", "ecg_to_shared", "labs_to_shared", "cxr_to_ecg",
             "cxr_to_labs")  # fmt: skip
    names |= {f"{head}.mlp.{i}.{kind}" for head in heads for i in (1, 2)
              for kind in ("weight", "bias")}  # fmt: skip
    got = shapes(torch_of("pacx"))
    assert set(got) == names | {"loss_module.logit_scale"}
    qkv = f"{prefix}blocks.3.attn.qkv."
    assert got[qkv + "lora_A.default.weight"] == (8, 768)
    assert got[qkv + "lora_B.default.weight"] == (2304, 8)
    assert got["cxr_to_ecg.mlp.1.weight"] == (1024, 768)
    assert got["loss_module.logit_scale"] == ()


def test_classifier_has_the_published_names(torch_of):
    names = [*encoder_names("model.backbone."), "model.head.weight", "model.head.bias"]
    assert list(shapes(torch_of("classifier"))) == names


def test_segmenter_has_the_published_names_and_shapes(torch_of):
    got = shapes(torch_of("segmenter"))
    rest = {k: v for k, v in got.items() if not k.startswith("model.backbone.")}
    want = {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
    kernels = [(256, 768, 3, 3), (256, 128, 2, 2), (128, 64, 2, 2), (64, 32, 2, 2),
               (32, 1, 2, 2)]  # fmt: skip
    for i, kernel in zip((0, 2, 4, 6, 8), kernels, strict=True):
        out = kernel[1 if i else 0]
        want |= {f"model.decoder.{i}.weight": kernel, f"model.decoder.{i}.bias": (out,)}
    assert rest == want
    assert {k for k in got if k not in rest} == set(encoder_names("model.backbone."))


def test_parameter_counts_are_the_published_ones(torch_of):
    mae, pacx = torch_of("mae"), torch_of("pacx")
    assert total(mae) == 111_907_840
    assert total(mae, trainable=True) == 111_655_680
    assert total(pacx.encoder) - 1_032_192 == 85_798_656
    assert total(pacx, trainable=True) == 2_547_201
    assert total(torch_of("labs")) == 341_298
    assert total(torch_of("ecg")) == 30_819_014


@pytest.mark.parametrize("name", ["mae", "labs", "ecg", "pacx"])
def test_every_published_name_has_its_place_in_our_tree(torch_of, name):
    state = {k: np.broadcast_to(np.float32(0), v)  # no memory, whatever the size
             for k, v in shapes(torch_of(name)).items()}  # fmt: skip
    tree = weights.import_state(name, state)
    if name == "pacx":
        tree.pop("encoder")
    if name == "ecg":
        tree = tree["encoder"]
    got = [f"{k} {v.shape}" for k, v in sorted(tiny.flat(tree).items())]
    golden = {"pacx": "distill"}.get(name, name)
    assert got == (GOLDEN / f"{golden}.txt").read_text().splitlines()
