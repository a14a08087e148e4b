"""Other people's encoders against timm's and transformers' own modules."""

import jax
import numpy as np
import pytest

from pacx_jax.convert import densenet, files, kinds
from pacx_jax.convert.options import Options
from tests.convert.test_foreign import plain
from tests.convert.test_kinds import assert_same
from tests.convert.test_live import (  # skips where they are not installed
    as_torch,
    close,
    shake,
    state_of,
    timm,
    tokens,
    torch,
    transformers,
)

from timm.models.eva import Eva  # isort: skip

STATISTICS = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
OPTIONS = Options(num_heads=2, **STATISTICS)
SIZES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32,
    patch_size=8,
)  # fmt: skip
TIMM = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def images(size=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, size, size, 3)).astype(np.float32)


def without_registers(theirs, folder):
    registers = folder.architecture.get("registers", 0)
    return np.concatenate([theirs[:, :1], theirs[:, 1 + registers :]], 1)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("name", ["Dinov2", "Dinov2WithRegisters"])
def test_transformers_dinov2_gives_the_same_tokens(name, swiglu, tmp_path):
    # Measured 1.2e-6; at other sizes 1.5e-6.
    config = getattr(transformers, f"{name}Config")(**SIZES, use_swiglu_ffn=swiglu)
    module = shake(getattr(transformers, f"{name}Model")(config))
    module.save_pretrained(tmp_path)  # under other names than in memory
    found = []
    for state in (state_of(module), files.read(tmp_path).state):
        folder, left = kinds.read("dinov2_hf", state, OPTIONS, "transformers")
        assert left == ["embeddings.mask_token"]
        found.append(folder)
    assert plain(found[0].architecture) == plain(found[1].architecture)
    written = [kinds.write("dinov2_hf", each) for each in found]
    assert_same(*written)
    of_file = files.read(tmp_path).state
    assert_same(written[0], {k: v for k, v in of_file.items() if "mask_token" not in k})
    for size in (32, 56):
        with torch.no_grad():
            theirs = module(pixel_values=as_torch(images(size))).last_hidden_state
        theirs = without_registers(theirs.numpy(), folder)
        close(f"{name} at {size}", tokens(folder, images(size)), theirs)


@pytest.mark.parametrize("registers", [0, 4])
def test_timm_dinov2_gives_the_same_tokens(registers):
    # Measured 1.0e-6; at other sizes 1.3e-6.
    more = {"reg_tokens": registers, "no_embed_class": True} if registers else {}
    module = shake(
        timm.models.VisionTransformer(
            **TIMM, init_values=1e-5, num_classes=0, dynamic_img_size=True, **more
        )
    )
    options = Options(num_heads=2, posemb_resampling="antialias", **STATISTICS)
    folder, left = kinds.read("dinov2", state_of(module), options, "timm")
    assert not left
    assert_same(kinds.write("dinov2", folder), state_of(module))
    for size in (32, 56):
        with torch.no_grad():
            theirs = module.forward_features(as_torch(images(size))).numpy()
        theirs = without_registers(theirs, folder)
        close(f"timm at {size}", tokens(folder, images(size)), theirs)


@pytest.mark.parametrize(
    "fields",
    [
        {},  # Ti and S
        {"qkv_fused": False, "scale_mlp": True},  # B
        {"global_pool": "token"},
    ],
)
def test_timm_eva02_gives_the_same_embedding_and_logits(fields):
    # Measured 1.2e-6.
    module = shake(
        Eva(
            **TIMM, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True,
            ref_feat_shape=(3, 3), num_classes=3, dynamic_img_size=True, **fields,
        )
    )  # fmt: skip
    pool = "cls" if "global_pool" in fields else None
    about = {"rotary_grid": 3, "task": "multilabel", "pool": pool}
    options = Options(num_heads=2, **STATISTICS, **about)
    folder, left = kinds.read("eva02", state_of(module), options, "timm")
    assert not left
    assert_same(kinds.write("eva02", folder), state_of(module))
    linear = folder.heads.params["head"]["linear"]
    for size in (32, 56):
        x = as_torch(images(size))
        with torch.no_grad():
            features = module.forward_features(x)
            z = module.forward_head(features, pre_logits=True).numpy()
            logits = module(x).numpy()
        ours = tokens(folder, images(size))
        close(f"EVA-02 at {size}", ours[:, 0], z)
        close("its logits", ours[:, 0] @ linear["kernel"] + linear["bias"], logits)
        if pool:
            close("its tokens", ours, features.numpy())


def dense(channels, **fields):
    """timm's DenseNet, with noise on every norm's parameters and statistics."""
    torch.manual_seed(0)
    module = timm.models.DenseNet(in_chans=channels, num_classes=3, **fields).eval()
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.add_(0.1 * torch.randn_like(value))
    return module


SMALL = {"growth_rate": 8, "block_config": (2, 1, 2)}
FULL = pytest.param("densenet_xrv", {}, id="121", marks=pytest.mark.full)


@pytest.mark.parametrize(
    "kind, fields", [("densenet", SMALL), ("densenet_xrv", SMALL), FULL]
)
def test_timm_densenet_gives_the_same_map_and_embedding(kind, fields):
    # Measured 7.2e-7 of the largest value; of DenseNet-121 6.0e-7.
    channels = densenet.KINDS[kind]
    module = dense(channels, **fields)
    folder, left = kinds.read(kind, state_of(module), Options(), "timm")
    counters = [k for k in state_of(module) if k.endswith("num_batches_tracked")]
    assert {*left} == {*counters, "classifier.weight", "classifier.bias"}
    # PyTorch makes the counters anew.
    again = {k: torch.tensor(v) for k, v in kinds.write(kind, folder).items()}
    missing, odd = module.load_state_dict(again, strict=False)
    assert not odd and {*missing} == {"classifier.weight", "classifier.bias"}
    x = images(64)[..., :channels]
    with torch.no_grad():
        features = module.forward_features(as_torch(x))
        z = module.forward_head(features, pre_logits=True).numpy()
    run = jax.jit(folder.module().apply)
    ours = np.asarray(run({"params": folder.params}, x))
    cells = features.flatten(2).transpose(1, 2).numpy()
    most = np.abs(cells).max()
    close(f"{kind}, of up to {most:.1f}", ours[:, 1:] / most, cells / most)
    close("its mean", ours[:, 0] / most, z / most)


@pytest.mark.full
@pytest.mark.parametrize(
    "name, kind, count",
    [
        ("vit_small_patch14_dinov2", "dinov2", 22_056_576),
        ("vit_base_patch14_dinov2", "dinov2", 86_580_480),
        ("vit_base_patch14_reg4_dinov2", "dinov2", 86_582_784),
        ("eva02_tiny_patch14_224", "eva02", 5_504_640),
        ("eva02_small_patch14_224", "eva02", 21_615_360),
        ("eva02_base_patch14_224", "eva02", 85_761_792),
    ],
)
def test_published_sizes_convert(name, kind, count):
    module = shake(timm.create_model(name, num_classes=0, img_size=224))
    state = state_of(module)
    assert sum(v.size for v in state.values()) == count
    folder, left = kinds.read(kind, state, Options(**STATISTICS), name)
    assert not left
    with torch.no_grad():
        x = as_torch(images(224))
        z = module.forward_head(module.forward_features(x), pre_logits=True).numpy()
    close(name, tokens(folder, images(224))[:, 0], z, 1e-4)
