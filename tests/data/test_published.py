"""Builders of published sets, each on a small tree with the published names."""

import json
import re
import types

import numpy as np
import pytest

from data import prepare, published, splits
from pacx_jax.input import images, pipeline, sources, transforms
from pacx_jax.input import prepared as manifests
from tests.data import test_prepare
from tests.data.published_trees import (
    DRAW,
    draw_chestx6,
    draw_chexchonet,
    draw_covidx,
    draw_nih14,
    draw_qata_cov19,
    draw_tb,
    draw_vindr_cxr,
    film,
    module,
    put,
    write,
)


@pytest.fixture
def run(capsys):
    """Runs the command in this process: (exit code, JSON, lines of out and err)."""

    def command(name, source, target, *flags):
        argv = [name, f"--source={source}", f"--target={target}", "--size=24"]
        code = prepare.main([*argv, "--workers=1", *flags])
        out, err = capsys.readouterr()
        summary = json.loads(out.splitlines()[-1]) if code == 0 else None
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return code, summary, out if code == 0 else "\n".join(errors)

    return command


IMAGES = {
    "tb": 20,
    "vindr_cxr": 16,
    "nih14": 24,
    "chestx6": 30,
    "chexchonet": 60,
    "covid_qu_ex": 15,
    "covidx": 24,
    "kermany": 48,
    "qata_cov19": 26,
    "cxlseg": 20,
    "mimic_cxr": 20,
    "padchest": 24,
    "openi": 24,
    "rsna_pneumonia": 40,
    "siim_acr": 12,
    "tbx11k": 48,
}
# Each tree has two images in train of a patient who is in val or test too.
SHARING = ("covidx", "qata_cov19", "cxlseg")
MASKED = ("covid_qu_ex", "qata_cov19", "cxlseg", "siim_acr")
RUNS = [(name, policy, ()) for name in DRAW for policy in splits.POLICIES]
RUNS += [("chexchonet", policy, ("--task=echo",)) for policy in splits.POLICIES]


def examples(target, summary):
    """split -> its examples."""
    data = types.SimpleNamespace(source="prepared", path=str(target))
    opened = {split: sources.open_source(data, split) for split in summary["counts"]}
    return {s: [source[i] for i in range(len(source))] for s, source in opened.items()}


@pytest.mark.parametrize(("tree", "policy", "flags"), RUNS)
def test_a_small_set_is_prepared_and_what_differs_is_said(
    tmp_path, run, tree, policy, flags
):
    DRAW[tree](tmp_path / "in")
    name, target = tree.split("/")[0], tmp_path / "out"
    code, summary, out = run(
        name, tmp_path / "in", target, f"--splits={policy}", *flags
    )
    assert code == 0, out
    read = examples(target, summary)
    assert set(read) == {"train", "val", "test"}
    assert {split: len(rows) for split, rows in read.items()} == summary["counts"]
    left_out = 2 if name in SHARING and policy == "strict" else 0
    assert sum(map(len, read.values())) == IMAGES[name] - left_out
    assert not sum(summary["unreadable"].values())
    facts = getattr(module(name), "FACTS", None)
    facts = facts or module(name).TASKS[flags[0][7:] if flags else "composite"]
    data = types.SimpleNamespace(source="prepared", path=str(target))
    assert sources.open_source(data, "train").label_names == facts.labels
    # The counts are beside the published ones, in words and in the JSON.
    assert "DIFFERENT from what was published: t" in out
    assert summary["published"] and summary["differences"]
    seen = [{e.get("patient_id") for e in rows} for rows in read.values()]
    shared = seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    if policy == "strict" and None not in seen[0]:
        assert not shared
    if (name, policy, flags) == ("chexchonet", "reference", ()):
        assert shared  # as the authors' code had it (D23)
    for example in read["train"]:  # alpha, 16 bits, colour: one and the same film
        shown = images.to_rgb(images.decode(example["image"]))
        assert min(shown.shape[:2]) == 24
        assert abs(shown.mean() - film().mean()) < 3
        if name in MASKED:  # in whatever file, it is the lungs of its own film
            mask = images.decode(example["mask"])
            empty = name == "siim_acr" and example["labels"] == 0
            assert set(np.unique(mask)) == ({0} if empty else {0, 255})
            assert mask.shape == shown.shape[:2]
            if empty:
                continue
            # A column beside, they would be 8 to 35 levels brighter.
            assert abs(shown[mask > 0].mean() - 131.8) < 6
        else:
            assert "mask" not in example


def test_labels_keep_what_is_missing_and_what_is_uncertain(tmp_path, run):
    draw_chexchonet(tmp_path / "in")
    _, summary, _ = run("chexchonet", tmp_path / "in", tmp_path / "out", "--task=echo")
    read = examples(tmp_path / "out", summary)
    labels = {e["path"]: e["labels"] for rows in read.values() for e in rows}
    np.testing.assert_array_equal(labels["images/cxr6.png"], [0, 0, np.nan, -1, 1])
    data = types.SimpleNamespace(source="prepared", path=str(tmp_path / "out"))
    config = types.SimpleNamespace(image_size=16, uncertain="one")
    batch = next(
        pipeline.train_batches(
            sources.open_source(data, "train"),
            transforms.make("probe", config, train=True, entries=("image", "labels")),
            global_batch_size=4,
            seed=0,
        )
    )
    np.testing.assert_array_equal(batch["label_mask"], [[1, 1, 0, 1, 1]] * 4)
    assert np.isfinite(batch["labels"]).all()


def test_vindr_labels_are_what_half_of_the_readers_say():
    nan = np.nan
    readings = np.array(
        [[1, 1, 0, nan, 1, nan], [1, 0, 0, nan, nan, -1], [0, 0, 1, nan, 0, nan]]
    )
    np.testing.assert_array_equal(
        module("vindr_cxr").majority(readings), [1, 0, 0, nan, 1, -1]
    )


def test_official_tests_are_kept_and_their_patients_leave_train(tmp_path, run):
    draw_covidx(tmp_path / "in")
    _, summary, out = run("covidx", tmp_path / "in", tmp_path / "out")
    assert summary["counts"] == {"train": 14, "val": 4, "test": 4}
    assert "note: 2 images of patients who are also in a later official split" in out
    assert "note: 3 rows repeat another and count once" in out
    draw_nih14(tmp_path / "nih")
    _, summary, _ = run("nih14", tmp_path / "nih", tmp_path / "nih_out")
    test = {e["path"][-16:] for e in examples(tmp_path / "nih_out", summary)["test"]}
    assert test == set((tmp_path / "nih/test_list.txt").read_text().split())


FULL = {  # images and positives of the whole sets
    "tb": (662, 336),
    "covidx": (84_818, 65_681),
    "kermany": (5_857, 4_274),  # the authors' notes have one image more than 5,856
    "chexchonet": (71_589, 20_000),
    "vindr_cxr": (15_000, 0),
    "nih14": (86_524, 0),
    "qata_cov19": (7_145, 0),
}
SHARES = {"chexchonet": (51_543, 5_728, 14_318), "nih14": (73_545, 12_979, 0)}


@pytest.mark.parametrize("name", FULL)
def test_the_reference_draws_have_the_published_sizes(name):
    n, high = FULL[name]
    facts = getattr(module(name), "FACTS", None) or module(name).TASKS["composite"]
    strata = [float(i < high) for i in range(n)]
    names, _ = splits.assign(facts.reference, [""] * n, [""] * n, strata)
    counts = {split: names.count(split) for split in splits.NAMES}
    told = published.merged_counts(facts, "reference")
    expected = {
        s: told[s]["images"] for s in splits.NAMES if "images" in told.get(s, {})
    }
    if name in SHARES:
        expected = dict(zip(splits.NAMES, SHARES[name], strict=True))
    if name in ("vindr_cxr", "qata_cov19"):
        expected["test"] = 0  # of the pool: the official test is not drawn
    assert counts == expected


def test_the_echo_task_draws_a_fifth_of_the_patients_and_halves_them():
    patients = [str(i // 3) for i in range(3000)]
    strata = [float(i // 3 % 4 == 0 and i % 3 == 0) for i in range(3000)]
    policy = module("chexchonet").TASKS["echo"].reference
    names, notes = splits.assign(policy, [""] * 3000, patients, strata)
    groups = [
        {p for p, n in zip(patients, names, strict=True) if n == s}
        for s in splits.NAMES
    ]
    assert [len(group) for group in groups] == [800, 100, 100] and not notes
    assert [sum(int(p) % 4 == 0 for p in group) for group in groups] == [200, 25, 25]


def test_missing_files_stop_it_unless_they_are_allowed(tmp_path, run):
    draw_nih14(tmp_path / "in")
    for name in ("00000002_000.png", "00000003_001.png"):
        next((tmp_path / "in").rglob(name)).unlink()
    code, _, error = run("nih14", tmp_path / "in", tmp_path / "out")
    assert code == 2 and "2 listed images are not there" in error
    assert "the first is '00000002_000.png' (" in error and ": row 6)" in error
    argv = ("nih14", tmp_path / "in", tmp_path / "out", "--allow_missing")
    code, summary, out = run(*argv)
    assert code == 0 and sum(summary["counts"].values()) == 22
    assert "note: 2 listed images are not there and left out" in out


def test_missing_masks_stop_it_unless_they_are_allowed(tmp_path, run):
    draw_qata_cov19(tmp_path / "in")
    next((tmp_path / "in").rglob("mask_covid_7.png")).unlink()
    code, _, error = run("qata_cov19", tmp_path / "in", tmp_path / "out")
    assert code == 2 and "1 listed images have no mask there, the first is" in error
    argv = ("qata_cov19", tmp_path / "in", tmp_path / "out", "--allow_missing")
    code, summary, out = run(*argv)
    assert code == 0 and sum(summary["counts"].values()) == 23
    assert "note: 1 listed images have no mask there and left out, the first" in out


@pytest.mark.parametrize("case", ["size", "levels"])
def test_a_mask_of_another_size_or_of_classes_is_refused(tmp_path, run, case):
    draw_qata_cov19(tmp_path / "in")
    path = next((tmp_path / "in").rglob("mask_covid_7.png"))
    mask = images.decode(path.read_bytes())
    h, w = mask.shape
    wrong = mask[:-1] if case == "size" else np.arange(h * w).reshape(h, w) % 4
    path.write_bytes(images.encode_png(wrong.astype(np.uint8)))
    said = {
        "size": f"covid_7.png: the image is {h}x{w} pixels (height x width) and its "
        f"mask {h - 1}x{w}; they must have one size",
        "levels": "mask_covid_7.png: its highest grey level is 3; a mask of 0 and 255",
    }[case]
    code, _, error = run(
        "qata_cov19", tmp_path / "in", tmp_path / "out", "--max_bad_share=0"
    )
    assert code == 2 and "1 unreadable samples" in error and said in error


def test_chexpert_leaves_out_missing_images_where_that_is_allowed(tmp_path, run):
    root = test_prepare.draw_chexpert(tmp_path)
    (root / "train/patient00003/study1/view1_frontal.jpg").unlink()
    _, summary, out = run("chexpert", root, tmp_path / "out", "--allow_missing")
    assert summary["counts"] == {"train": 11, "val": 4}
    assert "note: 1 listed images are not there" in out
    assert summary["differences"]["train"] == {"images": [11, 223_414]}


def test_chexpert_counts_a_repeated_row_once_and_refuses_a_contradicting_one(
    tmp_path, run
):
    csv = test_prepare.draw_chexpert(tmp_path) / "train.csv"
    row = csv.read_text().splitlines()[1]
    write(csv, csv.read_text().rstrip(), row)
    _, summary, out = run("chexpert", csv.parent, tmp_path / "out")
    assert summary["counts"]["train"] == 12
    assert "note: 1 rows repeat another and count once" in out
    write(csv, csv.read_text().rstrip(), row[: row.rindex(",")] + ",0.0")
    code, _, error = run("chexpert", csv.parent, tmp_path / "out2")
    assert code == 2 and "rows 2 and 15 both name" in error


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


BAD = {
    "wrong folder": ("tb", lambda r: put(r / "x.png"), "no shenzhen_metadata.csv or"),
    "no folder": ("tb", lambda r: r.rmdir(), "no such folder"),
    "column": (
        "tb",
        lambda r: draw_tb(r) or edit(r / "shenzhen_metadata.csv", "findings", "x"),
        "shenzhen_metadata.csv: no column 'findings'",
    ),
    "duplicate": (
        "tb",
        lambda r: (
            draw_tb(r)
            or edit(
                r / "shenzhen_metadata.csv", "bilateral PTB, right pleuritis", "normal"
            )
        ),
        "row 22: images/images/CHNCXR_0001_1.png is also in .* do not agree",
    ),
    "two roots": (
        "chestx6",
        lambda r: draw_chestx6(r / "a") or draw_chestx6(r / "b"),
        "ChestX6 is both in .*a/chest-xray and in .*b/chest-xray",
    ),
    "class": (
        "chestx6",
        lambda r: draw_chestx6(r) or put(r / "chest-xray/val/Edema/1.jpg"),
        "'Edema' is not a class; they are Covid-19, ",
    ),
    "no list": (
        "nih14",
        lambda r: draw_nih14(r) or (r / "test_list.txt").unlink(),
        "no test_list.txt here",
    ),
    "unlisted": (
        "nih14",
        lambda r: draw_nih14(r) or edit(r / "test_list.txt", "00000009_000.png", ""),
        "row 20: 00000009_000.png is in neither",
    ),
    "both lists": (
        "nih14",
        lambda r: draw_nih14(r) or edit(r / "test_list.txt", "", "00000000_001.png\n"),
        "00000000_001.png is in both train_val_list.txt and test_list.txt",
    ),
    "one CSV's label": (
        "chexpert",
        lambda r: edit(test_prepare.draw_chexpert(r) / "valid.csv", "Edema", "Oedema"),
        "valid.csv: no column 'Edema' .a label that the other CSV has",
    ),
    "finding": (
        "nih14",
        lambda r: draw_nih14(r) or edit(r / "Data_Entry_2017.csv", "Hernia", "Herna"),
        "row 3: unknown finding 'Herna'",
    ),
    "twice there": (
        "nih14",
        lambda r: draw_nih14(r) or put(r / "images/00000000_000.png"),
        "'00000000_000.png' is both images/00000000_000.png and images_001/",
    ),
    "reader": (
        "vindr_cxr",
        lambda r: (
            draw_vindr_cxr(r)
            or edit(r / "annotations/image_labels_train.csv", "R0,1", "R0,0")
        ),
        "by the same reader has other labels",
    ),
    "line": (
        "covidx",
        lambda r: draw_covidx(r) or edit(r / "val.txt", "negative", "maybe"),
        "val.txt: line 1: .* is not 'patient filename class source'",
    ),
    "label": (
        "chexchonet",
        lambda r: draw_chexchonet(r) or edit(r / "metadata.csv", "F,1", "F,7"),
        "row 2 has '7' in the label column 'slvh'",
    ),
    "task": ("tb", draw_tb, "--task means nothing for tb, but for chexchonet, medmod"),
    "other task": ("chexchonet", draw_chexchonet, "give one of composite, echo"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, run, case):
    name, spoil, message = BAD[case]
    (tmp_path / "in").mkdir()
    spoil(tmp_path / "in")
    flags = {"task": "echo", "other task": "labs", "label": "echo"}.get(case)
    flags = (f"--task={flags}",) if flags else ()
    code, _, error = run(name, tmp_path / "in", tmp_path / "out", *flags)
    assert code == 2 and "\n" not in error and re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_a_prepared_set_says_whose_ids_it_has(tmp_path, run):
    draw_tb(tmp_path / "in")
    run("tb", tmp_path / "in", tmp_path / "out")
    data = types.SimpleNamespace(source="prepared", path=str(tmp_path / "out"))
    path = tmp_path / "out" / manifests.FILE
    manifest = json.loads(path.read_text())
    assert manifest["namespace"] == "tb"
    path.write_text(json.dumps(manifest | {"namespace": "montgomery"}))
    assert sources.open_source(data, "train").namespace == "montgomery"


def test_a_target_of_an_older_version_counts_as_made_with_the_defaults(tmp_path, run):
    draw_tb(tmp_path / "in")
    argv = ("tb", tmp_path / "in", tmp_path / "out")
    run(*argv)
    path = tmp_path / "out" / manifests.FILE
    manifest = json.loads(path.read_text())
    for option in ("splits", "allow_missing", "task"):
        del manifest["settings"][option]
    path.write_text(json.dumps(manifest))
    assert run(*argv)[1]["status"] == "unchanged"
    code, _, error = run(*argv, "--splits=reference")
    assert code == 2 and "other settings (splits)" in error
