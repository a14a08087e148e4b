"""load_encoder and the embed command: images in, embeddings out."""

import io
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import embed, load_encoder, sharding
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from tests import tiny
from tests.models import plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, tiny.folder("vit"), "")
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder, batch_size=4)


@pytest.fixture(scope="module")
def alone(folder):
    """An encoder of one device."""
    return Encoder(model_folder.load(folder), batch_size=4, num_devices=1)


def xray(seed=0, shape=(50, 40)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def expected(image, params):
    """PIL's squash, ImageNet's statistics, and the plain ViT."""
    pil = PIL.Image.fromarray(image).convert("RGB").resize((32, 32), PIL.Image.BILINEAR)
    x = np.asarray(pil, np.float64) / 255
    x = (x - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return plain.vit(params, x, 8, 2, 1e-6)[0]


def test_embedding_is_the_cls_token_of_the_squashed_image(encoder, folder):
    # Bound 1e-5. Measured 3.0e-7.
    images = [xray(0), xray(1, (32, 32)), xray(2, (20, 90, 3)), xray(3, (300, 200))]
    params = model_folder.load(folder).params
    z = encoder(images)
    assert z.shape == (4, 32) and z.dtype == np.float32
    assert tiny.worst(z, [expected(x, params) for x in images]) < 1e-5


def test_same_image_in_any_form_gives_the_same_embedding(encoder, tmp_path):
    image = xray()
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    rgb = np.repeat(image[..., None], 3, -1)
    forms = [
        image,
        image[..., None],
        rgb,
        rgb[None],
        image[None],
        [image],
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        PIL.Image.fromarray(image),
        PIL.Image.fromarray(rgb),
        PIL.Image.open(tmp_path / "a.png"),
        (x for x in [image]),
    ]
    want = encoder(image)
    for form in forms:
        z = encoder(form)
        assert z.shape == (1, 32)
        np.testing.assert_array_equal(z, want)


def test_pil_image_means_what_its_file_means(encoder, tmp_path):
    wide = np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16)
    for i, image in enumerate(
        [
            PIL.Image.fromarray(wide),
            PIL.Image.fromarray(xray()).convert("P"),
            PIL.Image.fromarray(xray(1, (40, 30, 3))).convert("RGBA"),
            PIL.Image.fromarray(xray()).convert("1"),
        ]
    ):
        image.save(tmp_path / f"{i}.png")
        np.testing.assert_array_equal(encoder(image), encoder(tmp_path / f"{i}.png"))
    cmyk = PIL.Image.fromarray(xray(1, (40, 30, 3))).convert("CMYK")
    np.testing.assert_array_equal(encoder(cmyk), encoder(cmyk.convert("RGB")))


def test_sequence_may_mix_forms_and_sizes(encoder, tmp_path):
    PIL.Image.fromarray(xray(1)).save(tmp_path / "b.png")
    mixed = [xray(0), tmp_path / "b.png", PIL.Image.fromarray(xray(2, (70, 10)))]
    z = encoder(mixed)
    for row, image in zip(z, mixed, strict=True):
        assert tiny.relative(encoder(image)[0], row) < 1e-6  # another batch, as below


@pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
def test_embedding_does_not_depend_on_the_other_images(alone, n):
    # To the bit at one padded size; beyond it, another compilation. Measured 3.7e-7.
    z = alone([xray(i) for i in range(n)])
    assert len(z) == n
    assert tiny.relative(z[-1:], alone(xray(n - 1))) < 1e-6
    first = alone([*(xray(i) for i in range(20, 20 + n - 1)), xray(n - 1)])
    np.testing.assert_array_equal(z[-1:], first[-1:])


@pytest.mark.parametrize(
    "n, most, devices, rows",
    [(1, 32, 1, 1), (2, 32, 1, 2), (5, 32, 1, 8), (5, 6, 1, 6), (3, 32, 2, 4),
     (5, 12, 4, 8), (9, 12, 4, 12), (32, 32, 8, 32)],
)  # fmt: skip
def test_few_rows_are_padded_to_a_power_of_two_a_device(meshes, n, most, devices, rows):
    assert sharding.call_size(n, most, meshes[devices]) == rows


def test_one_image_does_not_cost_a_batch(alone, monkeypatch):
    sizes, forward = [], alone.forward
    monkeypatch.setattr(
        alone, "forward", lambda p, x: sizes.append(len(x)) or forward(p, x)
    )
    alone([xray(i) for i in range(5)])
    assert sizes == [4, 1]


def test_batch_size_changes_nothing_beyond_rounding(folder, encoder):
    # Another batch is another compilation. Bound 1e-6 of the norm; measured 2.8e-7.
    images = [xray(i) for i in range(5)]
    assert (
        tiny.relative(load_encoder(folder, batch_size=3)(images), encoder(images))
        < 1e-6
    )


def test_nothing_embeds_to_nothing(encoder):
    assert encoder([]).shape == (0, 32)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((2, 8, 8, 3), np.float64),
        np.zeros((8, 8), np.uint16),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros(8, np.uint8),
        np.uint8(3),
    ],
    ids=str,
)
def test_array_that_is_no_uint8_image_is_an_error(encoder, array):
    with pytest.raises(PacxError, match="uint8"):
        encoder(array)


def test_unreadable_file_is_an_error_that_names_it(encoder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    for name in ("bad.png", "nowhere.png"):
        with pytest.raises(PacxError, match=name):
            encoder(tmp_path / name)


def test_float_pil_image_is_an_error(encoder):
    with pytest.raises(PacxError, match="mode F"):
        encoder(PIL.Image.fromarray(np.zeros((4, 4), np.float32)))


def test_encoder_of_another_kind_is_refused(tmp_path):
    model_folder.save(tmp_path / "labs", tiny.folder("labs_dae"), "")
    with pytest.raises(PacxError, match="a labs_dae model, but a vit, unified or den"):
        load_encoder(tmp_path / "labs")


def test_attentions_are_those_of_every_block(encoder):
    images = np.stack([encoder.preprocess(xray(i)) for i in range(2)])
    maps = encoder.attentions(images)
    assert [a.shape for a in maps] == [(2, 2, 17, 17)] * 2
    for a in maps:
        assert np.abs(a.sum(-1) - 1).max() < 1e-6 and a.min() >= 0


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    (root / "b").mkdir(parents=True)
    PIL.Image.fromarray(xray(0)).save(root / "b" / "one.png")
    PIL.Image.fromarray(xray(1)).save(root / "a.JPG", format="JPEG")
    (root / "notes.txt").write_text("not an image")
    return root


def call(folder, images, out, *more):
    return embed.main(
        [f"--encoder={folder}", f"--images={images}", f"--out={out}", *more]
    )


def test_embed_writes_sorted_paths_and_their_embeddings(
    encoder, folder, images, tmp_path, capsys
):
    out = tmp_path / "new" / "z.npz"
    assert call(folder, images, out, "--batch_size=4") == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["path"].tolist() == ["a.JPG", "b/one.png"]
        assert file["embedding"].dtype == np.float32
        np.testing.assert_array_equal(
            file["embedding"], encoder([images / "a.JPG", images / "b" / "one.png"])
        )
    told = capsys.readouterr().out
    assert "2 embeddings of width 32" in told
    assert "passed over as no images: 1 .txt" in told
    assert [p.name for p in out.parent.iterdir()] == ["z.npz"]


def test_embed_stops_at_an_unreadable_image_or_lists_it(
    folder, images, tmp_path, capsys
):
    (images / "bad.png").write_bytes((images / "b" / "one.png").read_bytes()[:100])
    out = tmp_path / "z.npz"
    assert call(folder, images, out) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "bad.png" in error
    assert error.count("\n") == 1
    assert call(folder, images, out, "--skip_unreadable") == 0
    assert "skipped: " in (error := capsys.readouterr().err) and "bad.png" in error
    with np.load(out) as file:
        assert file["path"].tolist() == ["a.JPG", "b/one.png"]


def test_embed_leaves_nothing_of_a_file_that_it_could_not_write(
    folder, images, tmp_path, capsys, monkeypatch
):
    def full(file, **arrays):
        file.write(b"some")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed.np, "savez", full)
    assert call(folder, images, tmp_path / "new" / "z.npz") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"images": "nowhere"}, "nowhere: no such folder"),
        (
            {"images": "empty"},
            "no JPEG, PNG or DICOM files in this folder; check --",
        ),
        ({"folder": "nowhere"}, "nowhere: no such folder"),
        ({"out": "z.npy"}, "name a file that ends in .npz"),
    ],
)
def test_embed_tells_bad_input_in_one_line(
    folder, images, tmp_path, capsys, fields, expected
):
    (tmp_path / "empty").mkdir()
    fields = {k: tmp_path / v for k, v in fields.items()}
    args = {"folder": folder, "images": images, "out": tmp_path / "z.npz"} | fields
    assert call(**args) == 2
    error = capsys.readouterr().err
    assert expected in error and error.startswith("error: ") and error.count("\n") == 1


def test_embed_runs_as_a_command(folder, images, tmp_path):
    command = [sys.executable, "-m", "pacx_jax.embed", f"--encoder={folder}"]
    command += [f"--images={images}", f"--out={tmp_path / 'z.npz'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 embeddings of width 32" in done.stdout
    assert "Traceback" not in done.stderr
    with np.load(io.BytesIO((tmp_path / "z.npz").read_bytes())) as file:
        assert file["embedding"].shape == (2, 32)


def test_an_encoder_takes_another_image_size(tmp_path):
    # 1e-5 is for positions: the same image, squashed to 64 pixels before.
    model_folder.save(tmp_path / "f", tiny.folder("vit"), "card")
    encoder = load_encoder(tmp_path / "f", image_size=64)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    folder = tiny.folder("vit")
    pixels = (image / 255 - folder.preprocessing["mean"]) / folder.preprocessing["std"]
    tokens = jax.jit(folder.module().apply)(
        {"params": folder.params}, pixels[None].astype(np.float32)
    )
    assert tokens.shape == (1, 1 + 64, 32)
    assert np.abs(encoder(image) - np.asarray(tokens)[:, 0]).max() < 1e-5
    with pytest.raises(PacxError, match="image size 60 is not divisible"):
        load_encoder(tmp_path / "f", image_size=60)
