"""Shapes, ranges and chance of every transform."""

import types

import numpy as np
import pytest
from PIL import Image

from pacx_jax import modalities
from pacx_jax.errors import PacxError
from pacx_jax.input import augment, ecg, images, transforms

RAMP = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)


ENTRIES = {"probe": ("image", "labels"), "segment": ("image", "mask")}


def make(name, train=True, entries=None, readers=(), **fields):
    entries = ENTRIES.get(name, ("image",)) if entries is None else entries
    data = types.SimpleNamespace(**fields)
    return transforms.make(name, data, train=train, entries=entries, readers=readers)


def reader(name, **preprocessing):
    return modalities.Reader(name, modalities.get(name), preprocessing)


def example(**more):
    return {"image": images.encode_png(RAMP), "path": "a.png", **more}


def generator(seed=0):
    return np.random.default_rng(seed)


def paired():
    record = np.cumsum(generator().normal(size=(5000, 12)), 0).astype(np.float32)
    mask = np.zeros(50, np.float32)
    mask[:30] = 1
    labs = np.where(mask > 0, 0.5, np.nan).astype(np.float32)
    return example(ecg=record, lead_order="mimic", labs=labs, labs_mask=mask)


@pytest.mark.parametrize("name", ["mae", "distill", "probe"])
def test_images_have_one_shape_and_follow_the_generator_alone(name):
    transform = make(name, image_size=24, hflip=0.5)
    raw = example(labels=np.float32([1]))
    for given in (RAMP, RAMP[:, :9], np.stack([RAMP] * 3, -1)):
        raw["image"] = given
        outputs = [transform(raw, generator(seed))["image"] for seed in range(40)]
        assert {(o.shape, o.dtype.str) for o in outputs} == {((24, 24, 3), "|u1")}
        again = [transform(raw, generator(seed))["image"] for seed in range(40)]
        np.testing.assert_array_equal(outputs, again)
        assert len({o.tobytes() for o in outputs}) > 1


@pytest.mark.parametrize("name", ["mae", "distill", "probe"])
def test_evaluation_is_the_plain_squash(name):
    transform = make(name, train=False, image_size=24)
    out = transform(example(labels=np.float32([1])), generator())["image"]
    rgb = Image.fromarray(RAMP).convert("RGB")
    expected = rgb.resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(out, np.asarray(expected), atol=1e-5)


def test_image_and_mask_are_mirrored_and_turned_alike():
    # A mask as the image too: wherever its pixels go, the image's go as well.
    blob = np.zeros((24, 24), np.uint8)
    blob[3:15, 6:11] = 255
    raw = {"image": images.encode_png(blob), "mask": images.encode_png(blob)}
    transform = make("segment", image_size=24, hflip=0.5, degrees=10.0)
    outputs = [transform(raw, generator(seed)) for seed in range(30)]
    for out in outputs:
        assert out["target"].shape == (24, 24) and out["image"].shape == (24, 24, 3)
        for channel in range(3):
            np.testing.assert_array_equal(out["image"][..., channel] > 0, out["target"])
    assert len({out["target"].tobytes() for out in outputs}) > 10
    again = [transform(raw, generator(seed)) for seed in range(30)]
    assert all(
        (a["target"] == b["target"]).all() for a, b in zip(outputs, again, strict=True)
    )
    rng = generator(3)  # PIL's own rotation, by what is drawn there
    flipped, angle = rng.random() < 0.5, rng.uniform(-10, 10)
    expected = Image.fromarray(blob[:, ::-1] if flipped else blob).rotate(angle)
    np.testing.assert_array_equal(outputs[3]["target"] * 255, np.asarray(expected))


def test_masks_are_squashed_by_nearest_neighbours_and_images_smoothly():
    blob = np.uint8(255 * (RAMP > 70))
    raw = {"image": images.encode_png(blob), "mask": images.encode_png(blob)}
    out = make("segment", train=False, image_size=24)(raw, generator())
    squash = Image.fromarray(blob).resize((24, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out["image"][..., 0], np.asarray(squash))
    nearest = Image.fromarray(blob).resize((24, 24), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(out["target"] * 255, np.asarray(nearest))


def test_the_full_crop_is_the_squash():
    square = RAMP[:60, :60]
    out = augment.random_resized_crop(square, 24, (1.0, 1.0), (1.0, 1.0), generator())
    np.testing.assert_array_equal(out, images.resize_to(square, 24, 24))


def test_crops_keep_to_their_share_of_the_area():
    rng = generator()
    for _ in range(300):
        top, left, h, w = augment.random_box(60, 80, (0.5, 1.0), (3 / 4, 4 / 3), rng)
        assert 0 <= top <= 60 - h and 0 <= left <= 80 - w
        assert 0.48 < h * w / 4800 <= 1 and 0.73 < w / h < 1.37
    assert augment.random_box(10, 100, (1.0, 1.0), (0.9, 1.1), rng) == (0, 44, 10, 11)


def test_the_affine_map_without_motion_is_the_identity_and_shifts_are_right():
    class Middle:
        def uniform(self, low, high):
            return (low + high) / 2

    np.testing.assert_array_equal(augment.random_affine(RAMP, Middle()), RAMP)

    class Shift:
        draws = iter([0.0, 0.1, 0.0, 1.0])

        def uniform(self, low, high):
            return next(self.draws)

    moved = augment.random_affine(RAMP, Shift())
    np.testing.assert_array_equal(moved[:, 8:], RAMP[:, :-8])
    assert not moved[:, :8].any()


def test_distillation_does_not_mirror():
    ramp = np.tile(np.arange(10, 250, 3, dtype=np.uint8), (80, 1))
    for seed in range(60):
        out = augment.distillation(ramp, 32, generator(seed)).astype(float)
        assert out[12:20, 20:].mean() > out[12:20, :12].mean()


def test_missing_labels_are_masked_and_uncertain_ones_follow_the_config():
    raw = example(labels=np.float32([1, 0, -1, np.nan]))
    expected = {
        "ignore": ([1, 0, 0, 0], [1, 1, 0, 0]),
        "zero": ([1, 0, 0, 0], [1, 1, 1, 0]),
        "one": ([1, 0, 1, 0], [1, 1, 1, 0]),
        "reference": ([1, 0, 0, 0], [1, 1, 0, 1]),
    }
    for uncertain, (labels, mask) in expected.items():
        out = make("probe", image_size=8, uncertain=uncertain)(raw, generator())
        np.testing.assert_array_equal(out["labels"], np.float32(labels))
        np.testing.assert_array_equal(out["label_mask"], np.float32(mask))
        assert out["labels"].dtype == np.float32


def test_readers_give_the_modalities_that_are_asked_for():
    readers = (reader("ecg"), reader("labs"))
    out = make("distill", image_size=16, readers=readers)(paired(), generator())
    assert {k: v.shape for k, v in out.items()} == {
        "image": (16, 16, 3),
        "ecg": (5000, 12),
        "labs": (50,),
        "labs_mask": (50,),
    }
    assert np.isfinite(out["labs"]).all()
    expected = ecg.preprocess(paired()["ecg"], lead_order="mimic")
    np.testing.assert_array_equal(out["ecg"], expected)
    alone = make("distill", image_size=16)
    assert set(alone(paired(), generator())) == {"image"}


def test_ecg_can_be_decimated_and_comes_with_labels():
    raw = paired() | {"labels": np.float32([1, np.nan])}
    readers = (reader("ecg", decimate=4),)
    out = make("", entries=("labels",), readers=readers)(raw, generator())
    assert out["ecg"].shape == (1250, 12) and out["label_mask"].tolist() == [1, 0]
    out = make("", entries=(), readers=readers)(paired(), generator())
    assert set(out) == {"ecg"}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("ecg", {"ecg": np.zeros((5000, 12))}),
        ("labs", {"labs": np.full(50, np.nan), "labs_mask": np.zeros(50)}),
        ("vitals", {"vitals": np.full(7, np.nan), "vitals_mask": np.zeros(7)}),
    ],
)
def test_a_missing_modality_is_zeros_or_one_line(name, raw):
    module = modalities.get(name)
    optional = modalities.Reader(name, module, {}, optional=True)
    out = make("", entries=(), readers=(optional,))(example(**raw), generator())
    assert out.pop(f"{name}_present") == 0
    assert set(out) == set(module.ARRAYS) and not any(v.any() for v in out.values())
    with pytest.raises(PacxError, match=f"a.png: it has no {name}; remove the row"):
        make("", entries=(), readers=(reader(name),))(example(**raw), generator())


def test_bad_laboratory_values_are_one_line_with_the_name():
    raw = paired()
    raw["labs_mask"] = np.ones(50, np.float32)
    with pytest.raises(PacxError, match="a.png: NaN in labs that the mask calls"):
        make("", entries=(), readers=(reader("labs"),))(raw, generator())


def test_unknown_modalities_are_one_line_with_the_nearest():
    with pytest.raises(PacxError, match="'lab' .did you mean labs.*: choose ecg, labs"):
        modalities.get("lab")


def test_bad_fields_are_one_line():
    for name, fields, message in (
        ("mea", {}, "transform 'mea'"),
        ("distill", {"entries": ("x",)}, "entries x: give image, images, mask, labels"),
        ("mae", {"crop_scale": (0.9, 0.2)}, "data.crop_scale"),
        ("mae", {"image_size": 0}, "data.image_size 0"),
        ("probe", {"uncertain": "perhaps"}, "data.uncertain 'perhaps'"),
        ("segment", {"degrees": -1}, "data.degrees -1: give 0 to 180"),
    ):
        with pytest.raises(PacxError, match=message):
            make(name, **fields)
