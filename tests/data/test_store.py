"""Images stored as pixels: other bytes on disk, the same ones in training."""

import shutil
import types

import numpy as np
import pytest

from data import prepare, records
from pacx_jax.errors import PacxError
from pacx_jax.input import images, pipeline, sources, transforms

RNG = np.random.default_rng(0)
FILMS = [
    images.resize_to(RNG.integers(0, 256, (6, 5), dtype=np.uint8), 60 - i, 50 + i)
    for i in range(6)
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """store -> the training split: grey JPEGs, larger and smaller, and a colour PNG."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "films").mkdir()
    for i, film in enumerate(FILMS):
        (folder / "films" / f"{i}.jpg").write_bytes(images.encode_jpeg(film))
    colour = np.stack([FILMS[0], FILMS[0][::-1], 255 - FILMS[0]], -1)
    (folder / "films" / "6.png").write_bytes(images.encode_png(colour))
    opened = {}
    for store in ("encoded", "raw"):
        argv = ["folder", f"--source={folder / 'films'}", f"--target={folder / store}"]
        argv += [f"--store={store}", "--size=52", "--val_fraction=0"]
        assert prepare.main(argv) == 0
        opened[store] = sources.PreparedSource(str(folder / store), "train")
    return opened


def test_raw_images_are_what_decoding_the_stored_files_gives(sets):
    assert isinstance(sets["encoded"][0]["image"], bytes)
    shapes = set()
    for i in range(len(sets["raw"])):
        raw, encoded = sets["raw"][i], sets["encoded"][i]
        assert isinstance(raw["image"], np.ndarray) and raw["path"] == encoded["path"]
        pixels = images.decode(raw["image"])
        np.testing.assert_array_equal(pixels, images.decode(encoded["image"]))
        shapes.add(pixels.shape)
    assert (52, 52) in shapes and any(len(shape) == 3 for shape in shapes)


def test_a_flipped_bit_of_a_raw_image_makes_it_unreadable_never_wrong(sets, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(sets["raw"]._path, folder)
    (record,) = folder.glob("*-train.array_record*")
    data = bytearray(record.read_bytes())
    data[bytes(data).index(sets["raw"][2]["image"].tobytes()) + 300] ^= 1
    record.write_bytes(data)
    source, unreadable = sources.PreparedSource(str(folder), "train"), []
    for i in range(len(source)):
        try:
            np.testing.assert_array_equal(source[i]["image"], sets["raw"][i]["image"])
        except PacxError:
            unreadable.append(i)
    assert unreadable == [2]


def test_batches_of_both_stores_are_the_same_to_the_byte(sets):
    data = types.SimpleNamespace(image_size=24, hflip=0.5)
    transform = transforms.make("mae", data, train=True)
    streams = [
        pipeline.train_batches(sets[store], transform, global_batch_size=3, seed=0)
        for store in ("encoded", "raw")
    ]
    for _ in range(5):
        one, other = (next(stream) for stream in streams)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["index"], other["index"])
    for stream in streams:
        stream.close()


def test_a_set_without_images_cannot_be_stored_raw():
    plan = records.Plan({}, dict, str, ("ecg", "path"), (), "")
    with pytest.raises(PacxError, match="^--store=raw: this set has no images .ecg"):
        records.with_raw_images(plan)
