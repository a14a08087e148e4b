"""The models' forward passes and gradients, against PyTorch with the same weights.

Bounds in float32: outputs 1e-5 absolute, gradients 1e-4 of each array's largest entry.
Measured stands at each test, in float32 (float64 is the sharper check: bound 1e-10,
measured below 5e-15, but where said otherwise). `pytest -v` prints all of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import losses
from pacx_jax.models import ecg, heads, labs_dae, mae, positions, text, text_loss, vit
from tests.parity import comparing, sizes


@pytest.fixture
def mae_case(case):
    return case("mae")


def mae_model(precision, **fields) -> mae.MAE:
    s, dtype = sizes.MAE | fields, jnp.dtype(precision.name)
    encoder = vit.ViT(s["patch"], s["d"], s["depth"], s["heads"], dtype=dtype)
    pixels = 3 * s["patch"] ** 2
    decoder = mae.Decoder(
        pixels, s["dec_d"], s["dec_depth"], s["dec_heads"], dtype=dtype
    )
    return mae.MAE(encoder, decoder)


def mae_loss(model, case):
    """(loss, prediction) of the parameters and a flag, with the case's masks."""
    images = case.input("images")
    ids = case.input("keep"), case.input("restore")
    masked = mae.masked_ids(*ids)
    raw, standardised = (
        mae.patch_targets(images, sizes.MAE["patch"], flag, masked)
        for flag in (False, True)
    )

    def loss(params, norm_pix_loss):
        pred = model.apply({"params": params}, images, *ids)
        target = jnp.where(norm_pix_loss, standardised, raw)  # compiled once for both
        of_masked = mae.take_patches(pred, masked)
        return mae.reconstruction_loss(of_masked, target).mean(), pred

    return loss


def test_fixed_positions_equal_those_of_the_checkpoint(source, measure):
    # Bound 1e-7, one rounding. Measured 0.
    for name, width in (("pos_embed", "d"), ("decoder_pos_embed", "dec_d")):
        want = comparing.load(source, "mae")[f"state/model.{name}"]
        got = positions.sincos_2d(sizes.MAE_GRID, sizes.MAE[width])
        measure(name, got, want[0, 1:], 1e-7)
        assert not want[0, 0].any()


def test_vit_tokens_of_all_patches_equal(mae_case, precision, measure):
    # Measured 1.4e-6.
    model, params = mae_model(precision), mae_case.params("mae")
    got = jax.jit(model.encoder.apply)(
        {"params": params["encoder"]}, mae_case.input("images")
    )
    measure("ViT tokens", got, mae_case.out("tokens"), precision.forward)


def test_vit_tokens_of_the_kept_patches_equal(mae_case, precision, measure):
    # Measured 9.5e-7.
    model, params = mae_model(precision), mae_case.params("mae")
    got = jax.jit(model.encoder.apply)(
        {"params": params["encoder"]}, mae_case.input("images"), mae_case.input("keep")
    )
    measure("ViT kept tokens", got, mae_case.out("kept_tokens"), precision.forward)


@pytest.mark.parametrize("name", ["loss", "norm_pix_loss"])
def test_mae_prediction_loss_and_gradients_with_given_masks_equal(
    mae_case, precision, measure, name
):
    # Measured: prediction 1.4e-6, losses 0, gradients 4.4e-7.
    run = jax.jit(
        jax.value_and_grad(mae_loss(mae_model(precision), mae_case), has_aux=True)
    )
    params = mae_case.params("mae")
    (loss, pred), grads = run(params, np.bool_(name == "norm_pix_loss"))
    measure("MAE prediction", pred, mae_case.out("pred"), precision.forward)
    # The reference divides by sum(mask) + 1e-8: 5e-10 of the loss here.
    bound = max(precision.forward, 1e-9)
    measure(f"MAE {name}", loss, mae_case.out(name), bound)
    want = mae_case.gradients("mae", name)
    measure(f"MAE gradients of {name}", grads, want, precision.gradient, relative=True)


def labs_model(mask_inputs: bool) -> labs_dae.LabsDAE:
    s = sizes.LABS
    encoder = labs_dae.Encoder(s["hidden"], s["latent"], mask_inputs)
    return labs_dae.LabsDAE(encoder, labs_dae.Decoder(s["features"], s["hidden"]))


@pytest.mark.parametrize("name", ["latent", "latent_raw"])
def test_labs_latent_equals_with_missing_values_zeroed_and_raw(
    case, precision, measure, name
):
    # D7: zeroed is ours, raw is the reference's extraction. Measured 3.0e-7.
    c = case("labs")
    encoder = labs_model(mask_inputs=name == "latent").encoder
    got = jax.jit(encoder.apply)(
        {"params": c.params("labs")["encoder"]}, c.input("values"), c.input("mask")
    )
    measure(f"DAE {name}", got, c.out(name), precision.forward)


def test_labs_reconstruction_loss_and_gradients_equal(case, precision, measure):
    # Measured: reconstruction 6.0e-8, loss 0, gradients 3.0e-7.
    c = case("labs")
    model = labs_model(mask_inputs=True)
    values, mask = c.input("values"), c.input("mask")
    bits = mask * (1 - c.input("drop"))  # the corruption of D13, given

    def run(params):
        pred = model.apply({"params": params}, values * bits, bits)
        return labs_dae.masked_mse(pred, values, mask), pred

    params = c.params("labs")
    (loss, pred), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    measure("DAE reconstruction", pred, c.out("pred"), precision.forward)
    measure("DAE loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("labs", "loss")
    measure("DAE gradients", grads, want, precision.gradient, relative=True)


def ecg_model(precision) -> ecg.Classifier:
    s = sizes.ECG
    net = ecg.Net1D(
        s["base"], s["filters"], s["blocks"], s["kernel"], s["width"],
        jnp.dtype(precision.name))  # fmt: skip
    return ecg.Classifier(net, s["classes"])


def embed_ecg(c, precision, length: int):
    net, params = ecg_model(precision).encoder, c.params("ecg")["encoder"]
    return jax.jit(net.apply)({"params": params}, c.input(f"ecg_{length}"))


@pytest.mark.parametrize(
    ("precision", "length"),
    [(comparing.PRECISIONS[0], t) for t in sizes.ECG_LENGTHS]
    + [(comparing.PRECISIONS[1], 333)],
    ids=lambda v: getattr(v, "name", v),
    indirect=["precision"],
)
def test_net1d_embedding_equals_at_5000_and_at_odd_lengths(
    case, precision, measure, length
):
    c = case("ecg")
    got = embed_ecg(c, precision, length)
    want = c.out(f"embedding_{length}")  # measured 4.8e-7 at most
    measure(f"Net1D at {length}", got, want, precision.forward)


@comparing.FLOAT32
def test_net1d_case_notices_another_padding_of_the_max_pool(case, monkeypatch):
    # With -inf instead of zero on the right, as XLA's SAME has it: measured 0.34.
    def same(x):
        return ecg.nn.max_pool(x, (2,), (2,), "SAME")

    monkeypatch.setattr(ecg, "max_pool", same)
    c = case("ecg")
    difference = embed_ecg(c, c.precision, 333) - c.out("embedding_333")
    assert np.abs(difference).max() > 1e-3


@comparing.FLOAT32  # it takes 8 seconds to compile
def test_net1d_logits_loss_and_gradients_equal(case, precision, measure):
    # Measured: logits 2.4e-7, loss 6.0e-8, gradients 1.1e-6.
    c = case("ecg")
    model, x, labels = ecg_model(precision), c.input("ecg_333"), c.input("labels")

    def run(params):
        logits = model.apply({"params": params}, x)
        return losses.masked_bce(logits, labels, np.ones_like(labels)), logits

    params = c.params("ecg")
    (loss, logits), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    measure("Net1D logits", logits, c.out("logits"), precision.forward)
    measure("Net1D loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("ecg", "loss")
    measure("Net1D gradients", grads, want, precision.gradient, relative=True)


@comparing.FLOAT32
def test_classifier_logits_loss_and_gradients_equal(case, precision, measure):
    # Measured: logits 9.5e-7, loss 2.4e-7, gradients 1.1e-6.
    c, s = case("classifier"), sizes.ROLLOUT
    dtype = jnp.dtype(precision.name)
    encoder = vit.ViT(s["patch"], s["d"], s["depth"], s["heads"], dtype=dtype)
    head = heads.LinearClassifier(sizes.CLASSES)
    images, labels = c.input("images"), c.input("labels")

    def run(params):
        tokens = encoder.apply({"params": params["encoder"]}, images)
        logits = head.apply({"params": params["head"]}, tokens[:, 0])
        return losses.masked_bce(logits, labels, np.ones_like(labels)), logits

    params = c.params("classifier")
    (loss, logits), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    measure("classifier logits", logits, c.out("logits"), precision.forward)
    measure("classifier loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("classifier", "loss")
    measure("classifier gradients", grads, want, precision.gradient, relative=True)


def test_segmentation_decoder_equals_lax_with_flipped_transposed_kernels(
    case, precision, measure
):
    # lax.conv_transpose flips its kernel unless told otherwise: at stride = size,
    # out[2i + a, 2j + b] = sum x[i, j] W[:, :, a, b] needs W (I, O, kh, kw) as HWIO
    # with both spatial axes flipped. A segmentation head will need this.
    c = case("segmenter")
    state = precision.cast(c.part("state"))
    x = c.out("tokens")[:, 1:]
    x = x.reshape(len(x), 2, 3, -1)
    axes = ("NHWC", "HWIO", "NHWC")
    for i in (0, 2, 4, 6, 8):
        kernel, bias = (state[f"model.decoder.{i}.{k}"] for k in ("weight", "bias"))
        if i == 0:
            kernel = kernel.transpose(2, 3, 1, 0)
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=axes
            )
        else:
            kernel = kernel.transpose(2, 3, 0, 1)[::-1, ::-1]
            x = jax.lax.conv_transpose(
                jnp.maximum(x, 0), kernel, (2, 2), "SAME", dimension_numbers=axes
            )
        x = x + bias
    want = np.moveaxis(c.out("logits"), 1, -1)
    measure("segmentation logits", x, want, precision.forward)


@pytest.mark.parametrize("name", ["text", "text_positions"])
@pytest.mark.parametrize("chunk", [0, 7])
def test_text_decoder_logits_loss_and_gradients_equal(
    case, precision, measure, name, chunk
):
    # Measured: logits 1.3e-6, loss 4.8e-7, gradients 1.0e-6.
    c, s = case(name), sizes.TEXT
    model = text.TextDecoder(
        s["vocab"], s["d"], s["depth"], s["heads"], s["mlp"], dtype=precision.name,
        posemb="none" if name == "text" else "learned", max_length=sizes.TEXT_LENGTH,
    )  # fmt: skip
    tokens, memory, present = map(c.input, ("tokens", "memory", "present"))

    def run(params):
        of, args = {"params": params}, (tokens, present, sizes.TEXT_PAD)
        logits = model.apply(of, tokens, memory)
        total, count = text_loss.caption_loss(logits, *args)
        if chunk:
            hidden = model.apply(of, tokens, memory, method="hidden")
            kernel = params["head"]["kernel"]
            options = {"chunk": chunk, "dtype": precision.name}
            total, count = text_loss.chunked_caption_loss(
                hidden, kernel, *args, **options
            )
        return total / count, logits

    params = c.params("text")
    (loss, logits), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    measure("text logits", logits, c.out("logits"), precision.forward)
    measure("text loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("text", "loss")
    measure("text gradients", grads, want, precision.gradient, relative=True)
