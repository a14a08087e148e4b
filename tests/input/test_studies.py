"""Studies of several views: grouping, order, labels, batches."""

import types

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import images, pipeline, studies, transforms, views


class Images:
    """A source of images in memory: (patient, study, view, grey level, label)."""

    label_names = ("a", "b")
    split, namespace, notes, fingerprint = "train", "mine", (), "1"
    entries = ("image", "path", "patient_id", "study_id", "view", "labels")
    entries += ("impression",)

    def __init__(self, rows, named=True):
        self.rows, self.named = rows, named

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        patient, study, view, grey, label = self.rows[i]
        return {
            "image": np.full((8, 8), grey, np.uint8),
            "path": f"{i}.png",
            "patient_id": patient,
            "study_id": study,
            "view": view,
            "labels": np.array([label, np.nan], np.float32),
            "impression": f"{patient} {study}",
        }

    def name(self, i):
        return f"{i}.png"

    def patients(self):
        return [row[0] for row in self.rows]

    def labels(self):
        return np.stack([self[i]["labels"] for i in range(len(self))])

    def studies(self):
        if not self.named:
            return None
        return studies.Index([r[1] for r in self.rows], [r[2] for r in self.rows])


ROWS = [
    ("p1", "1", "AP", 10, 0),
    ("p2", "1", "lateral", 20, -1),
    ("p1", "1", "LL", 30, 1),
    ("p1", "1", "PA", 40, np.nan),
    ("p2", "1", "unknown", 50, 0),
    ("p3", "", "PA", 60, 0),
    ("p3", "", "PA", 70, 1),
]


def grouped(rows=ROWS):
    return studies.Studies(Images(rows), "set")


def settings(**more):
    fields = dict(image_size=8, channels=1, max_views=2, hflip=0.0, jitter=0.0)
    return types.SimpleNamespace(**fields | {"crop_scale": (1.0, 1.0)} | more)


def transform(train, **more):
    entries = ("images", "labels")
    return transforms.make("mvmae", settings(**more), train=train, entries=entries)


def test_a_study_is_one_patients_images_of_one_study_id():
    source = grouped()
    assert len(source) == 4  # a blank study id is a study of its own
    assert source.counts().tolist() == [3, 2, 1, 1]
    assert source.patients() == ["p1", "p2", "p3", "p3"]
    assert source[0]["impression"] == "p1 1"
    assert "3 images" in source.name(0)
    assert "4 studies of 7 images" in source.notes[-1]
    assert "1 unknown" in source.notes[-1]


def test_the_first_of_each_kind_comes_first():
    assert grouped()[0]["views"] == ["AP", "LL", "PA"]
    assert grouped()[1]["views"] == ["lateral", "unknown"]


def test_labels_are_the_strongest_of_the_images():
    found = grouped().labels()
    assert found[:, 0].tolist() == [1, -1, 0, 1]
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[0], grouped()[0]["labels"])


def test_a_source_without_studies_is_refused():
    with pytest.raises(PacxError, match="names no studies: prepare it again"):
        studies.Studies(Images(ROWS, named=False), "set")


def test_a_batch_has_one_shape_and_says_what_is_padding():
    stream = pipeline.eval_batches(grouped(), transform(False), global_batch_size=4)
    batch = next(stream)
    assert batch["images"].shape == (4, 2, 8, 8, 1)
    assert batch["view_mask"].tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert batch["view"].tolist() == [[0, 1], [1, 2], [0, 2], [0, 2]]
    assert batch["images"][0, :, 0, 0, 0].tolist() == [10, 30]  # the first two
    assert not batch["images"][2, 1].any()


def test_training_draws_views_by_seed_and_position_alone():
    def first(n, **more):
        stream = pipeline.train_batches(
            grouped(ROWS[:4]), transform(True), global_batch_size=4, seed=3, **more
        )
        return [next(stream) for _ in range(n)]

    def greys(batches):
        return [b["images"][:, :, 0, 0, 0].tolist() for b in batches]

    whole = greys(first(8))
    assert greys(first(4, start_step=4)) == whole[4:]
    assert greys(first(8, threads=0)) == whole
    mine = greys(first(8, rows=np.array([1, 3])))
    assert mine == [[step[1], step[3]] for step in whole]
    pairs = {tuple(row) for step in whole for row in step if row[1]}
    assert pairs >= {(10, 30), (10, 40), (30, 40)}  # any two, in their order


def test_grey_and_colour_have_the_channels_that_are_asked_for():
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 0] = 100
    data = images.encode_png(colour)
    grey = transforms.make("", settings(), train=False)
    rng = np.random.default_rng(0)
    out = grey({"image": data}, rng)["image"]
    assert out.shape == (8, 8, 1) and out[0, 0, 0] == 30  # 0.299 of red
    threefold = transforms.make("", settings(channels=3), train=False)
    assert threefold({"image": data}, rng)["image"].shape == (8, 8, 3)
    with pytest.raises(PacxError, match="data.channels 2"):
        transforms.make("", settings(channels=2), train=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("PA", "PA"),
        ("antero-posterior", "AP"),
        ("AP_horizontal", "AP supine"),
        ("L", "LL"),
        ("LATERAL", "lateral"),
        ("", "unknown"),
        ("nan", "unknown"),
        ("LAO", "unknown"),
        ("mammography", None),
    ],
)
def test_what_data_sets_call_views(text, name):
    assert views.parse(text) == name
