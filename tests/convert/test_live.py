"""Converted models against the libraries whose checkpoints they are."""

import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.convert import files, kinds, tables
from pacx_jax.convert.sizes import Options
from pacx_jax.models import mae, positions
from tests.convert.test_kinds import assert_same

if not os.environ.get("PACX_REQUIRE_TORCH"):
    for _name in ("torch", "timm", "transformers"):
        if importlib.util.find_spec(_name) is None:
            pytest.skip(f"{_name} is not installed", allow_module_level=True)

import tests.torchvision_ops  # noqa: E402, F401  before timm and transformers

import timm  # noqa: E402  isort: skip
import torch  # noqa: E402  isort: skip
import transformers  # noqa: E402  isort: skip

OPTIONS = Options(num_heads=2, decoder_num_heads=2)
SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=128, image_size=32, patch_size=8,
)  # fmt: skip


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)


def as_torch(images):
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def state_of(module):
    return {k: v.numpy().copy() for k, v in module.state_dict().items()}


def shake(module):
    """Every parameter gets noise, so that no bias is 0 and no scale 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def tokens(folder, images):
    return np.asarray(folder.module().apply({"params": folder.params}, images))


def close(name, ours, theirs, limit=1e-5):
    error = float(np.abs(ours - theirs).max())
    print(f"{name}: largest error {error:.1e}, limit {limit:.0e}")
    assert error <= limit, f"{name}: {error}"


def timm_vit(**kwargs):
    return shake(
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, **kwargs
        )
    )


def test_timm_vit_gives_the_same_tokens(images):
    module = timm_vit(num_classes=5)
    folder, left = kinds.read("vit_timm", state_of(module), OPTIONS, "timm")
    assert not left
    with torch.no_grad():
        theirs = module.forward_features(as_torch(images)).numpy()
        logits = module(as_torch(images)).numpy()
    ours = tokens(folder, images)
    close("timm ViT", ours, theirs)
    linear = folder.heads.params["head"]["linear"]
    close("its logits", ours[:, 0] @ linear["kernel"] + linear["bias"], logits)
    assert folder.heads.architecture["task"] == "multiclass"
    assert_same(kinds.write("vit_timm", folder), state_of(module))


def test_learned_positions_are_resampled_as_timm_does():
    posemb = np.random.default_rng(0).normal(size=(1, 1 + 16, 32)).astype(np.float32)
    for side in (2, 7, 8):
        theirs = timm.layers.resample_abs_pos_embed(
            torch.tensor(posemb), [side, side], num_prefix_tokens=1
        ).numpy()
        ours = np.asarray(positions.resample(posemb, (4, 4), (side, side)))
        close(f"positions 4x4 to {side}x{side}", ours, theirs)


def test_a_timm_vit_takes_another_image_size():
    module = timm_vit(num_classes=0, dynamic_img_size=True)
    folder, _ = kinds.read("vit_timm", state_of(module), OPTIONS, "timm")
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = module.forward_features(as_torch(images)).numpy()
    close("timm ViT at twice the size", tokens(folder, images), theirs)


def test_hugging_face_vit_gives_the_same_tokens(images, tmp_path):
    config = transformers.ViTConfig(**SIZES)
    module = shake(transformers.ViTModel(config))
    module.save_pretrained(tmp_path)
    options = Options(num_heads=2, ln_eps=config.layer_norm_eps)
    with torch.no_grad():
        theirs = module(pixel_values=as_torch(images)).last_hidden_state.numpy()
    for name, state in (
        ("memory", state_of(module)),
        ("file", files.read(tmp_path).state),
    ):
        folder, left = kinds.read("vit_hf", state, options, name)
        assert left == ["pooler.dense.weight", "pooler.dense.bias"]
        close(f"transformers ViT, {name}", tokens(folder, images), theirs)


def test_hugging_face_mae_gives_the_same_pixels(images, tmp_path):
    decoder = {
        "decoder_" + k: v
        for k, v in SIZES.items()
        if k not in ("image_size", "patch_size")
    }
    config = transformers.ViTMAEConfig(**SIZES, **decoder, mask_ratio=0.5)
    module = shake(transformers.ViTMAEForPreTraining(config))
    # transformers 5.23 leaves a new model's positions zero; published ones are sin-cos.
    fixed = torch.tensor(tables.positions(4, 32))
    module.vit.embeddings.position_embeddings.data = fixed
    module.decoder.decoder_pos_embed.data = fixed.clone()
    options = Options(num_heads=2, decoder_num_heads=2, ln_eps=config.layer_norm_eps)
    folder, left = kinds.read("vit_hf", state_of(module), options, "memory")
    assert not left and "posemb_grid" not in folder.architecture
    module.save_pretrained(tmp_path)  # which names the decoder's blocks otherwise
    saved, left = kinds.read("vit_hf", files.read(tmp_path).state, options, "file")
    assert not left
    assert_same(saved.heads.flat(), folder.heads.flat())
    noise = np.random.default_rng(1).random((3, 16)).astype(np.float32)
    with torch.no_grad():
        out = module(pixel_values=as_torch(images), noise=torch.tensor(noise))
    order = np.argsort(noise, axis=1)
    restore = np.argsort(order, axis=1)
    h = {k: v for k, v in folder.heads.architecture.items() if k != "encoder_width"}
    model = mae.MAE(folder.module(), mae.Decoder(**h))
    params = {"encoder": folder.params, **folder.heads.params}
    ours = model.apply({"params": params}, jnp.asarray(images), order[:, :8], restore)
    close("transformers ViTMAE", np.asarray(ours), out.logits.numpy())
    target = mae.patch_targets(jnp.asarray(images), 8, False, order[:, 8:])
    masked = mae.take_patches(ours, order[:, 8:])
    loss = float(mae.reconstruction_loss(masked, target).mean())
    close("its loss", np.float32(loss), out.loss.numpy())
