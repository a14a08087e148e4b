"""PyTorch modules with the published names, converted: the same outputs, both ways."""

import importlib.util
import os

import jax
import numpy as np
import pytest

from pacx_jax.convert import kinds
from pacx_jax.convert.sizes import Options
from pacx_jax.models import heads, mae
from pacx_jax.objectives import segment

if importlib.util.find_spec("torch") is None and not os.environ.get(
    "PACX_REQUIRE_TORCH"
):
    pytest.skip("PyTorch is not installed", allow_module_level=True)

import torch  # noqa: E402  isort: skip

from tests.parity import making  # noqa: E402  isort: skip
from tests.parity import torch_modules as tm  # noqa: E402  isort: skip
from tests.parity import torch_stage_two as ts  # noqa: E402  isort: skip

GRID, SIZE = (4, 4), 32
VIT = {"patch": 8, "d": 32, "depth": 2, "heads": 4}
OPTIONS = Options(num_heads=4, decoder_num_heads=2)


def filled(module):
    making.fill(module, making.rng("published"))
    return module.eval()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def convert(kind, module, options=OPTIONS):
    """The folder of a module's state dict, which must come out again to the bit."""
    state = {k: v.numpy().copy() for k, v in module.state_dict().items()}
    folder, left = kinds.read(kind, state, options, "module")
    assert not left
    again = kinds.write(kind, folder)
    assert set(again) == set(state)
    for key, value in state.items():
        assert again[key].tobytes() == value.tobytes(), key
        assert again[key].dtype == value.dtype, key
    module.load_state_dict({k: torch.from_numpy(v) for k, v in again.items()})
    return folder


def close(what, ours, theirs, bound=1e-5):
    error = float(np.abs(np.asarray(ours) - theirs.detach().numpy()).max())
    print(f"{what}: largest error {error:.1e}, bound {bound:.0e}")
    assert error <= bound, f"{what}: {error:.1e}"


def images_for(rng):
    x = rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    return x, making.chw(x)


def encode(folder, images):
    return folder.module().apply({"params": folder.params}, images)


def test_mae(rng):
    inner = tm.MAE(GRID, **VIT, dec_d=16, dec_depth=2, dec_heads=2)
    folder = convert("mae", filled(tm.Lightning(inner)))
    x, theirs = images_for(rng)
    keep, restore, _ = making.masks(rng, 2, 16, 5)
    h = dict(folder.heads.architecture)
    del h["encoder_width"]
    params = {"encoder": folder.params, **folder.heads.params}
    ours = mae.MAE(folder.module(), mae.Decoder(**h)).apply(
        {"params": params}, x, keep, restore
    )
    want = inner(theirs, torch.from_numpy(keep), torch.from_numpy(restore))
    close("MAE's pixels", ours, want)


def test_pacx_with_adapters_and_heads(rng):
    encoder = tm.Encoder(GRID, **VIT, eps=1e-5)
    module = filled(ts.Pacx(encoder, d_ecg=12, d_labs=6, shared=8, rank=2, alpha=4.0))
    options = Options(num_heads=4, alpha=4.0)
    folder = convert("pacx", module, options)
    assert folder.architecture["ln_eps"] == 1e-5
    x, theirs = images_for(rng)
    ecg, labs = (making.tensor(rng.normal(size=(2, d)).astype("f4")) for d in (12, 6))
    _, _, want = module(theirs, ecg, labs)
    z = encode(folder, x)[:, 0]
    close("PaCX's embedding", z, want["z"])
    inputs = {"cxr": z, "ecg": ecg.numpy(), "labs": labs.numpy()}
    for name, (_, d) in folder.heads.architecture["heads"].items():
        params = {"params": folder.heads.params["heads"][name]}
        ours = heads.Head(d).apply(params, inputs[name.split("_")[0]], train=False)
        close(name, ours, want[name])
    scale = module.loss_module.logit_scale.item()
    assert folder.heads.params["logit_scale"] == np.float32(scale)


def test_labs_autoencoder(rng):
    inner = tm.LabsDAE(features=10, hidden=16, latent=8)
    module = filled(tm.Lightning(inner))
    x = rng.random((3, 10)).astype(np.float32)
    mask = (rng.random((3, 10)) > 0.4).astype(np.float32)
    want = inner.encoder(torch.cat([making.tensor(x), making.tensor(mask)], 1))
    # The authors' extraction feeds missing values as they are (D7); ours zeroes them.
    folder = convert("labs_dae", module, Options(mask_inputs=False))
    ours = folder.module().apply({"params": folder.params}, x, mask)
    close("labs latent, as the reference", ours, want)
    want = inner.encoder(torch.cat([making.tensor(x * mask), making.tensor(mask)], 1))
    folder = convert("labs_dae", module)
    ours = folder.module().apply({"params": folder.params}, x, mask)
    close("labs latent", ours, want)


@pytest.mark.parametrize("classes", [0, 5])
def test_ecgfounder(rng, classes):
    sizes = dict(filters=(6, 9, 12), blocks=(2, 1, 1), kernel=16, width=3)
    module = filled(tm.Net1D(base=6, **sizes, classes=classes or 1))
    if not classes:
        del module.dense
    folder = convert("ecgfounder", module)
    for t in (5000, 1001):
        x = rng.normal(size=(2, t, 12)).astype(np.float32)
        ours = jax.jit(folder.module().apply)({"params": folder.params}, x)
        want = module.features(torch.from_numpy(x.transpose(0, 2, 1).copy()))
        close(f"ECG embedding of {t} samples", ours, want)
        if classes:
            head = folder.heads.params["head"]["linear"]
            logits = ours @ head["kernel"] + head["bias"]
            close("ECG logits", logits, module.dense(want))


def test_probe_and_segmenter(rng):
    x, theirs = images_for(rng)
    inner = filled(tm.Classifier(tm.Encoder(GRID, **VIT), 3))
    folder = convert("probe", tm.Lightning(inner))
    head = heads.LinearClassifier(3)
    ours = head.apply({"params": folder.heads.params["head"]}, encode(folder, x)[:, 0])
    close("probe's logits", ours, inner(theirs))
    assert folder.heads.architecture["labels"] == [
        "class_000",
        "class_001",
        "class_002",
    ]

    inner = filled(tm.Segmenter(tm.Encoder(GRID, **VIT), GRID, (8, 6, 4, 3)))
    folder = convert("segment", tm.Lightning(inner, True))
    decoder = heads.SegmentationDecoder(tuple(folder.heads.architecture["widths"]))
    tokens = encode(folder, x)[:, 1:].reshape(2, *GRID, -1)
    ours = decoder.apply({"params": folder.heads.params["decoder"]}, tokens)
    want = inner(theirs)
    close("mask logits", np.moveaxis(np.asarray(ours), -1, 1), want)
    assert folder.preprocessing["mean"] == [0.485, 0.456, 0.406]


def test_segmentation_loss_and_gradients_equal(rng):
    # Measured: loss 7.2e-7, gradients 1.4e-6 of the largest.
    inner = filled(tm.Segmenter(tm.Encoder(GRID, **VIT), GRID, (16, 8, 4)))
    folder = convert("segment", tm.Lightning(inner, True))
    x, theirs = images_for(rng)
    target = rng.integers(0, 2, (2, SIZE, SIZE)).astype(np.uint8)
    decoder = heads.SegmentationDecoder(tuple(folder.heads.architecture["widths"]))
    tokens = encode(folder, x)[:, 1:].reshape(2, *GRID, -1)

    def loss(params):
        masks = decoder.apply({"params": params}, tokens)[..., 0]
        each = segment.sums(masks, target)
        return each["bce"].mean() + 1 - segment.soft_dice(each)

    ours, grads = jax.jit(jax.value_and_grad(loss))(folder.heads.params["decoder"])
    logits, t = inner(theirs), torch.from_numpy(target).float()[:, None]
    p = torch.sigmoid(logits)
    dice = (2 * (p * t).sum() + 1e-6) / (p.sum() + t.sum() + 1e-6)
    want = torch.nn.functional.binary_cross_entropy_with_logits(logits, t) + 1 - dice
    want.backward()
    last = inner.decoder[-1]
    close("segmentation loss", ours, want)
    first = grads["conv"]["kernel"].transpose(3, 2, 0, 1)  # (out, in, h, w)
    for got, of in ((first, inner.decoder[0].weight), (grads["up_2_bias"], last.bias)):
        largest = of.grad.abs().max()
        close("relative gradient", got / float(largest), of.grad / largest)
