"""Features on 8 simulated devices: those of one, with the shardings as stated."""

import pathlib

import jax
import ml_collections
import numpy as np
import PIL.Image

from pacx_jax.encoders import forward
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.evaluate import features
from pacx_jax.input import images as imageio
from pacx_jax.input import sources
from tests import tiny

RNG = np.random.default_rng(0)


def placed(jitted, *args):
    """The shardings of a jitted function's arguments and of its result."""
    compiled = jitted.lower(*args).compile()
    return compiled.input_shardings[0], jax.tree.leaves(compiled.output_shardings)


def check_data_parallel(jitted, params, rows):
    (of_params, of_rows), of_result = placed(jitted, params, rows)
    assert all(s.is_fully_replicated for s in jax.tree.leaves(of_params))
    for sharding in jax.tree.leaves(of_rows):
        assert sharding.spec[0] == ("data", "fsdp") and len(sharding.device_set) == 8
    assert all(s.is_fully_replicated for s in of_result)


def test_encoder_on_eight_devices_gives_the_embeddings_of_one():
    # Bound 1e-5; measured 2.9e-7, attention 6.9e-7. Five images are neither a batch
    # of three nor a row for each device.
    folder = tiny.folder("vit")
    images = list(RNG.integers(0, 256, (5, 40, 30), dtype=np.uint8))
    many, one = (Encoder(folder, 3, num_devices=n) for n in (8, 1))
    assert many.batch_size == 8 and one.batch_size == 3
    assert tiny.worst(many(images), one(images)) < 1e-5
    x = np.stack([many.preprocess(image) for image in images])
    for a, b in zip(many.attentions(x), one.attentions(x), strict=True):
        assert a.shape == b.shape == (5, 2, 17, 17)
        assert tiny.worst(a, b) < 1e-5
    for jitted in (many.forward, many.attention_maps):
        check_data_parallel(jitted, many.params, np.resize(x, (8, *x.shape[1:])))


def test_same_image_has_the_same_embedding_on_every_device():
    encoder = Encoder(tiny.folder("vit"), 8)
    image = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
    z = encoder([image] * 8)
    np.testing.assert_array_equal(z, np.repeat(z[:1], 8, 0))


def test_physiology_on_eight_devices_gives_the_embeddings_of_one(meshes):
    # Bound 1e-5; measured 2.3e-7.
    ecg_folder, labs_folder = tiny.folder("ecg_net1d"), tiny.folder("labs_dae")
    ecg = RNG.normal(size=(11, 64, 12)).astype(np.float32)
    labs = RNG.random((11, 50)).astype(np.float32)
    arrays = (ecg, labs, np.ones_like(labs))
    many, one = (
        features.physiology(ecg_folder, labs_folder, *arrays, 4, meshes[n])
        for n in (8, 1)
    )
    assert many.shape == (11, 24) and tiny.worst(many, one) < 1e-5
    jitted = forward.arrays(labs_folder.module(), meshes[8])
    check_data_parallel(jitted, labs_folder.params, (labs[:8], labs[:8]))


def test_random_encoder_is_the_same_architecture_and_its_own_seed():
    folder = tiny.folder("vit")
    first, again, other = (features.random_encoder(folder, s) for s in (0, 0, 1))
    image = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(first(image), again(image))
    assert np.abs(first(image) - other(image)).max() > 1e-3
    for leaf in jax.tree.leaves(first.params):
        assert leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8


class _Studies:
    """Two studies of known pixels, the second without a lateral."""

    label_names = ("a", "b")

    def __init__(self):
        grey = [np.full((30, 40), value, np.uint8) for value in (51, 102, 153)]
        self.examples = [
            {"images": grey[:2], "views": ["PA", "LL"], "patient_id": "1",
             "labels": np.float32([1, np.nan]), "path": "x.png"},
            {"images": grey[2:], "views": ["AP"], "patient_id": "2",
             "labels": np.float32([0, -1]), "path": "y.png"},
        ]  # fmt: skip

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        example = dict(self.examples[i])
        pngs = [imageio.encode_png(image) for image in example["images"]]
        return example | {"images": pngs}

    def name(self, i):
        return self.examples[i]["path"]


def test_a_set_of_studies_has_a_row_an_image_and_labels_a_study():
    found = features.read_study_set(_Studies())
    assert found.views == ["PA", "LL", "AP"] and found.index.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(found.labels, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(found.mask, [[1, 0], [1, 0]])
    assert len(set(found.patients)) == 2 and found.paths == ["x.png", "y.png"]
    views = features.view_labels(found)
    assert views.sum(1).tolist() == [1, 1, 1] and len(np.unique(views, axis=0)) == 3


def test_features_by_view_have_weights_of_their_own_and_absence_says_nothing():
    found = features.read_study_set(_Studies())
    grey = features.pixels(found, 2)
    means = features.view_means(grey, found)
    np.testing.assert_allclose(means[:, 0], [0.4, 0.4, 0], atol=1e-6)
    apart = features.by_view(grey, found, means).reshape(3, 3, 4)
    np.testing.assert_allclose(apart[:, 0, 0], [-0.2, 0, 0.2], atol=1e-6)
    assert not apart[:, 1:].any()  # the one lateral is its own mean; none is unknown


def test_a_part_of_a_source_and_a_mixture_are_embedded(tmp_path):
    """They know studies and views through their parts alone."""
    for name, n in (("a", 6), ("b", 4)):
        (tmp_path / name).mkdir()
        for i in range(n):
            film = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
            PIL.Image.fromarray(film).save(tmp_path / name / f"{i}.png")
    encoder, folders = Encoder(tiny.folder("vit"), 4), (tmp_path / "a", tmp_path / "b")
    fields = tiny.config("mae_vitb16").data.to_dict()
    fields |= dict(source="folder", csv="-", val_fraction=0.0, test_fraction=0.0)

    def opened(path, limit=0):
        data = ml_collections.ConfigDict({**fields, "path": path, "limit": limit})
        return sources.open_source(data, "train")

    paths = '("folder:{}", "folder:{}")'.format(*folders)
    both = features.of_source(encoder, opened(paths), tmp_path)
    first = features.of_source(encoder, opened(str(folders[0])), tmp_path)
    assert both.shape == (10, 32) and tiny.worst(both[:6], first) < 1e-6
    part = opened(str(folders[0]), 3)
    rows = [int(pathlib.Path(part.name(i)).stem) for i in range(3)]
    got = features.of_source(encoder, part, tmp_path)
    assert tiny.worst(got, first[rows]) < 1e-6
