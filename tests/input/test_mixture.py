"""Several data sets as one: order, labels, patients, a run, and what is refused."""

import collections
import json
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from pacx_jax import main
from pacx_jax.errors import PacxError
from pacx_jax.input import (
    mixture,
    patients,
    pipeline,
    quarantine,
    sources,
    subsets,
    transforms,
)
from pacx_jax.modalities import table
from tests import tiny


class Set:
    """n examples that say which set they are of."""

    split, entries, notes = "train", ("image", "path", "labels", "patient_id"), ()

    def __init__(self, name, n, labels=("a",), namespace="folder"):
        self.set, self.n, self.label_names = name, n, labels
        self.namespace, self.fingerprint = namespace, f"{name}{n}"

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        image = np.full((8, 8), i, np.uint8)
        known = {"labels": self.labels()[i], "patient_id": self.patients()[i]}
        return {"image": image, "path": self.name(i), **known}

    def name(self, i):
        return f"{self.set}{i}.png"

    def patients(self):
        return [f"{i // 2}" for i in range(self.n)]

    def labels(self):
        return np.ones((self.n, len(self.label_names)), np.float32)


def mixed(weighting="size", sizes=(30, 50, 120)):
    sets = [Set(name, n) for name, n in zip("xyz", sizes, strict=True)]
    return mixture.Mixture(sets, "xyz", weighting)


def drawn(source, positions, seed=3):
    number = mixture.order(source, seed)
    return np.array([number(p) for p in positions])


def test_by_size_every_example_occurs_once_in_an_epoch():
    assert sorted(drawn(mixed(), range(200))) == list(range(200))


@pytest.mark.parametrize(
    "weighting, shares",
    [
        ("(2, 1, 1)", (0.5, 0.25, 0.25)),
        ("size^0.5", np.sqrt([30, 50, 120]) / np.sqrt([30, 50, 120]).sum()),
        ((0.37, 0.61, 0.02), (0.37, 0.61, 0.02)),
    ],
)
def test_weighted_sets_have_their_shares_and_each_of_its_examples_alike(
    weighting, shares
):
    source = mixed(weighting)
    n = 8 * mixture.BLOCK
    found = drawn(source, range(n))
    sets = source.set_numbers()[found]
    counts = np.bincount(sets)
    # Closer than chance: each block has its share, to one position.
    assert (np.abs(counts - np.multiply(shares, n)) <= 1).all()
    for k in range(3):  # of a set, none comes again before all have come
        times = collections.Counter(found[sets == k])
        assert max(times.values()) - min(times.values()) <= 1
    assert len(set(sets[:16])) > 1  # within a batch, sets are mixed


def test_a_position_depends_on_nothing_before_it():
    source = mixed("(3, 2, 1)")
    positions = np.random.default_rng(0).permutation(3000)
    straight = drawn(source, range(3000))
    np.testing.assert_array_equal(drawn(source, positions), straight[positions])
    assert (drawn(source, range(100), seed=4) != straight[:100]).any()


def test_hosts_and_a_later_start_give_the_same_batches():
    source = mixed("(3, 2, 1)")
    transform = transforms.make(
        "mae", types.SimpleNamespace(image_size=8, hflip=0.5), train=True
    )

    def batches(start, rows=None):
        stream = pipeline.train_batches(
            source, transform, global_batch_size=8, seed=1, start_step=start, rows=rows
        )
        found = [next(stream) for _ in range(4)]
        stream.close()
        return found

    whole = batches(2)
    halves = [batches(2, np.arange(4)), batches(2, np.arange(4, 8))]
    for i, batch in enumerate(whole):
        for key, value in batch.items():
            joined = np.concatenate([half[i][key] for half in halves])
            np.testing.assert_array_equal(joined, value)
    np.testing.assert_array_equal(batches(4)[0]["index"], whole[2]["index"])


def test_labels_are_joined_by_name_and_missing_where_a_set_lacks_them():
    sets = [Set("x", 2, ("a", "b")), Set("y", 3, ("c", "a")), Set("z", 1, ())]
    sets[2].entries = ("image", "path")
    source = mixture.Mixture(sets, ("x", "y", "z"), "size")
    assert source.label_names == ("a", "b", "c")
    nan = np.nan
    want = [[1, 1, nan]] * 2 + [[1, nan, 1]] * 3 + [[nan] * 3]
    np.testing.assert_array_equal(source.labels(), np.array(want, np.float32))
    for i in range(6):
        np.testing.assert_array_equal(source[i]["labels"], source.labels()[i])
    part = subsets.Subset(source, np.array([0, 4]))
    assert (part.sets, part.set_numbers().tolist()) == (("x", "y", "z"), [0, 1])


@pytest.mark.parametrize(
    "columns, whole, message",
    [
        (("a b", "A_b"), "", "x has the label 'a b' and y 'A_b'; rename one"),
        (("a b",), "", "y has none of the labels a b; leave it out"),
        (
            ("a b", "c"),
            "data.uncertain=reference",
            "y has no label 'a b', and data.unc",
        ),
    ],
)
def test_labels_that_the_sets_do_not_share(columns, whole, message):
    sets = [Set("x", 2, ("a b", "c")), Set("y", 2, ("A_b", "c"))]
    source = mixture.Mixture(sets, ("x", "y"), "size")  # of which an MAE may learn
    mixture.check_labels(subsets.Subset(source, np.array([0])), ("a b", "c"), "")
    with pytest.raises(PacxError, match=message):
        mixture.check_labels(source, columns, whole)


def test_a_set_without_a_split_is_left_out_of_it_but_not_of_training(tmp_path):
    for name, column in (("one", "a"), ("two", "b")):
        write_folder(tmp_path / name, 8, [column], len(name))
    file = tmp_path / "one/labels.csv"
    lines = file.read_text().splitlines()
    held = [f"{line},{'val' if i > 4 else 'train'}" for i, line in enumerate(lines)]
    file.write_text("\n".join([f"{lines[0]},split", *held[1:]]))
    data = types.SimpleNamespace(source="folder", weights="(1, 1)", val_fraction=0)
    data.path = f'("{tmp_path}/one", "{tmp_path}/two")'
    val = sources.open_source(data, "val")
    assert (val.sets, len(val), val.weights) == (("one",), 4, None)
    assert "val: NOT of two, without that split" in val.notes
    data.train_split = "val"
    with pytest.raises(sources.NoSplit, match="two: the val split is empty"):
        sources.open_source(data, "val")


def test_sets_are_named_by_the_ends_of_their_paths():
    given = ("a/x", "folder:y/", "folder:z/x", "folder:.")
    assert mixture.names(given) == ("a/x", "y", "folder:z/x", "folder:.")


def test_a_set_has_its_own_share_of_unreadable_samples():
    source, found = mixed(), quarantine.Quarantine(None, 0.05)
    for i in (30, 31):  # of y's 50
        found.record(source, i, source.name(i), "torn")
    found.record(source, 0, source.name(0), "torn")  # of x
    with pytest.raises(PacxError, match="3 unreadable samples of 50 .* split of y"):
        found.record(source, 32, source.name(32), "torn")


def test_a_table_by_image_knows_images_of_one_set_alone(tmp_path):
    def of(by, ids):
        file = tmp_path / "table.npz"
        np.savez(file, id=np.array(ids), embedding=np.eye(len(ids)))
        return table.load("t", str(file), by).of(source)

    sets = [Set("x", 2), Set("x", 3, namespace="mimic")]
    source = mixture.Mixture(sets, ("a", "b"), "size")
    assert np.isfinite(of("image", ["x2.png"])).sum() == 1
    found = of("patient", ["folder/0", "mimic/1"])
    np.testing.assert_array_equal(np.isfinite(found)[:, 0], [1, 1, 0, 0, 1])
    with pytest.raises(PacxError, match="id x1.png names examples of several sets"):
        of("image", ["x1.png"])


def test_patients_of_one_archive_are_one_and_others_are_not():
    names = ("x", "y")
    one = [Set("x", 2, namespace="mimic"), Set("y", 2, namespace="mimic")]
    source = mixture.Mixture(one, names, "size")
    assert (source.namespace, source.patients()) == ("mimic", ["0"] * 4)
    two = [Set("x", 2, namespace="mimic"), Set("y", 2, namespace="chexpert")]
    source = mixture.Mixture(two, names, "size")
    assert source.patients() == ["mimic/0", "mimic/0", "chexpert/0", "chexpert/0"]
    assert source[3]["patient_id"] == "chexpert/0"
    keys = {patients.key(source.namespace, who) for who in source.patients()}
    assert keys == {patients.key("mimic", "0.0"), patients.key("chexpert", "0")}


def write_folder(path, n, labels, seed):
    path.mkdir()
    rng = np.random.default_rng(seed)
    rows = ["path,patient_id," + ",".join(labels)]
    for i in range(n):
        pixels = rng.integers(0, 255, (16, 16), np.uint8)
        PIL.Image.fromarray(pixels).save(path / f"{i}.png")
        rows.append(f"{i}.png,{i}," + ",".join(str(i % 2) for _ in labels))
    (path / "labels.csv").write_text("\n".join(rows) + "\n")


def test_each_set_is_read_as_its_kind_says(tmp_path):
    """What is set of folders is no matter of prepared sets beside them."""
    for name, labels in (("one", ["a", "age"]), ("two", ["b"])):
        write_folder(tmp_path / name, 8, labels, len(name))
    data = types.SimpleNamespace(
        path=f'("prepared:x", "folder:{tmp_path}/one", "folder:{tmp_path}/two")',
        source="prepared",
        val_fraction=0.5,
        label_columns=("age", "b"),
        namespace='("", "", "mine")',
    )
    assert [part.val_fraction for part in mixture.parts(data)] == [0.1, 0.5, 0.5]
    data.path = data.path.replace('"prepared:x", ', "")
    data.namespace = '("", "mine")'
    source = sources.open_source(data, "train")
    assert (source.sets, source.label_names) == (("one", "two"), ("age", "b"))
    assert source.namespace == "folder+mine"


def test_a_probe_of_two_sets_trains_and_is_measured_by_set(tmp_path, capsys):
    write_folder(tmp_path / "one", 40, ["a", "b"], 0)
    write_folder(tmp_path / "two", 60, ["b"], 1)
    encoder = tiny.write_folders(tmp_path / "models")["model_init"]
    config = tiny.config(
        "linear_probe",
        model_init=str(encoder),
        total_steps=2,
        global_batch_size=16,
        log_every=1,
        eval_every=2,
        save_every=2,
        data__path=f'("folder:{tmp_path}/one", "folder:{tmp_path}/two")',
        data__weights="(3, 1)",
        data__val_fraction=0.3,
        data__image_size=32,
        data__threads=0,
    )
    main.run(config, str(tmp_path / "run"))  # without the test splits of either
    said = capsys.readouterr().out
    assert "examples of 2 sets: one" in said and "two lacks a: masked there" in said
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert first["share/one"] + first["share/two"] == 1
    assert {"val/loss", "val/one/loss", "val/two/loss"} <= set(last)
    fingerprints = json.loads((tmp_path / "run/data.json").read_text())
    assert {"train.one.fingerprint", "train.two.fingerprint"} <= set(fingerprints)
    main.measure(config, str(tmp_path / "run"), "val")
    found = json.loads((tmp_path / "run/evaluation_val.json").read_text())
    assert set(found["sets"]) == {"one", "two"}
    assert set(found["sets"]["two"]["intervals"]) == {"b"}
    assert "two: b: AUROC" in capsys.readouterr().out
    with pytest.raises(PacxError, match="one is data.path too"):
        main.run(config, str(tmp_path / "one"))
    config.data.label_columns = ("a",)
    with pytest.raises(PacxError, match="two has none of the labels a; leave it out"):
        main.run(config, str(tmp_path / "other"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"path": '("a", "a")'}, "a stands there twice"),
        ({"path": "()"}, "it names no path"),
        ({"path": '("a", b)'}, "give a path, or several"),
        ({"path": '("{}/one", "{}/copy")'}, "one and copy are copies of one set"),
        ({"path": '("{}/one", "{}/none")'}, "none: no such folder"),
        ({"path": '("{}/one", "prepared:{}/two")'}, "two: not a prepared data set"),
        ({"path": '("{}/one", "{}/grades")'}, "row 4 has '2' in the label column 'G'"),
        ({"namespace": "mine"}, "each set of a mixture has its own"),
        ({"namespace": '("mine",)'}, "each set of a mixture has its own"),
        ({"split": "test"}, "two: the test split is empty"),
        ({"train_split": "test", "split": "test"}, "one: the test split is empty"),
        ({"weights": "(1, 0)"}, r"weight 2 is 0, less than 0.2%"),
        ({"weights": "(2, -1)"}, r"weight 2 is -1, less than 0.2%"),
        ({"weights": (1, float("nan"))}, "give size, size\\^0.5 or numbers"),
        ({"weights": "(1, 2, 3)"}, "has 3 weights for 2 sets"),
        ({"weights": "equal"}, "give size, size\\^0.5 or numbers"),
        ({"weights": "size^x"}, "give size, size\\^0.5 or numbers"),
    ],
)
def test_what_cannot_be_mixed_is_refused(tmp_path, fields, message):
    write_folder(tmp_path / "one", 8, ["Pleural Effusion"], 0)
    write_folder(tmp_path / "two", 8, ["other"], 1)
    write_folder(tmp_path / "grades", 8, ["G"], 2)
    table = tmp_path / "grades/labels.csv"
    table.write_text(table.read_text().replace("2.png,2,0", "2.png,2,2"))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    given = {"path": '("{}/one", "{}/two")', "weights": "size", "namespace": ""}
    given |= {"source": "folder", "val_fraction": 0.3} | fields
    given["label_columns"] = ("G",) if "grades" in given["path"] else ()
    given["path"] = given["path"].replace("{}", str(tmp_path))
    with pytest.raises(PacxError, match=message):
        split = given.pop("split", "train")
        sources.open_source(types.SimpleNamespace(**given), split)
