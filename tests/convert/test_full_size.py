"""Published sizes, through the converter, against PyTorch: `launch/test.sh --all`."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from pacx_jax.convert import kinds
from pacx_jax.convert.sizes import Options
from pacx_jax.models import mae

if importlib.util.find_spec("torch") is None and not os.environ.get(
    "PACX_REQUIRE_TORCH"
):
    pytest.skip("PyTorch is not installed", allow_module_level=True)

import torch  # noqa: E402  isort: skip

from tests.parity import making  # noqa: E402  isort: skip
from tests.parity import torch_modules as tm  # noqa: E402  isort: skip
from tests.parity import torch_stage_two as ts  # noqa: E402  isort: skip

pytestmark = pytest.mark.full
VIT = {"patch": 16, "d": 768, "depth": 12, "heads": 12}


def converted(kind, module, options):
    making.fill(module, making.rng("full"))
    module.eval()
    state = {k: v.numpy().copy() for k, v in module.state_dict().items()}
    folder, _ = kinds.read(kind, state, options, "module")
    again = kinds.write(kind, folder)
    assert all(again[k].tobytes() == v.tobytes() for k, v in state.items())
    return folder


def close(what, ours, theirs, bound=1e-5):
    error = float(np.abs(np.asarray(ours) - theirs.detach().numpy()).max())
    print(f"{what}: largest error {error:.1e}, bound {bound:.0e}")
    assert error <= bound, f"{what}: {error:.1e}"


@pytest.fixture
def images():
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    return x, making.chw(x)


def test_mae_vitb16(images):
    inner = tm.MAE((14, 14), **VIT, dec_d=512, dec_depth=8, dec_heads=16)
    folder = converted("mae", tm.Lightning(inner), Options())
    keep, restore, mask = making.masks(np.random.default_rng(1), 2, 196, 19)
    h = {k: v for k, v in folder.heads.architecture.items() if k != "encoder_width"}
    model = mae.MAE(folder.module(), mae.Decoder(**h))
    params = {"encoder": folder.params, **folder.heads.params}
    ours = jax.jit(model.apply)({"params": params}, images[0], keep, restore)
    theirs = inner(images[1], torch.from_numpy(keep), torch.from_numpy(restore))
    close("ViT-B/16 MAE pixels", ours, theirs)
    target = mae.patch_targets(images[0], 16, False)
    masked = mae.masked_ids(keep, restore)
    of_masked = [mae.take_patches(x, masked) for x in (ours, target)]
    loss = mae.reconstruction_loss(*of_masked).mean()
    error = ((theirs - making.tensor(np.asarray(target))) ** 2).mean(-1)
    want = (error * making.tensor(mask)).sum() / mask.sum()
    close("its loss", loss, want)


def test_pacx_vitb16(images):
    module = ts.Pacx(tm.Encoder((14, 14), **VIT, eps=1e-5))
    folder = converted("pacx", module, Options())
    ours = jax.jit(folder.module().apply)({"params": folder.params}, images[0])[:, 0]
    with torch.no_grad():  # float64: in float32 PyTorch's own error is as large
        want = module.double().encoder(images[1].double())
    close("ViT-B/16 with LoRA, merged", ours, want)


def test_ecgfounder():
    module = tm.Net1D()
    folder = converted("ecgfounder", module, Options())
    x = np.random.default_rng(0).normal(size=(2, 5000, 12)).astype(np.float32)
    z = jax.jit(folder.module().apply)({"params": folder.params}, x)
    head = folder.heads.params["head"]["linear"]
    logits = np.asarray(z) @ head["kernel"] + head["bias"]
    with torch.no_grad():
        want = module(torch.from_numpy(x.transpose(0, 2, 1).copy()))
    close("ECGFounder's logits", logits, want[0] if isinstance(want, tuple) else want)
