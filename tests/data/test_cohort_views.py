"""The cohort's laterals and reports, and the two folders that hold them."""

import collections
import csv
import dataclasses
import filecmp
import gzip
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data.cohort import (
    depth,
    generate,
    latents,
    lateral,
    mimic,
    profile,
    report_text,
    report_words,
    reports,
    xray,
)
from pacx_jax.input import views

_NONE = [f"--{n}=0" for n in ("pretrain", "symile", "ecg")]
_NONE += [f"--probe_{s}=0" for s in ("train", "val", "test")]
_SIZES = [*_NONE, "--seed=3", "--mimic=24", "--mimic_valid=4", "--mimic_test=5"]
_SIZES += ["--views_train=6", "--views_val=2", "--views_test=3", "--film_size=96"]
_SCRIPT = pathlib.Path(generate.__file__)
_SMALL = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("views") / "one"
    assert generate.main([f"--target={target}", *_SIZES]) == 0
    return target


@pytest.fixture(scope="module")
def people():
    keys = (latents.Key(0, "views_train", p, k) for p in range(700) for k in range(2))
    return [depth.study(key) for key in keys]


def _table(root, name):
    path = root / f"mimic_cxr/mimic-cxr-2.0.0-{name}.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def _files(root):
    return sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())


def _changed(study, **causes):
    return dataclasses.replace(study, depth=dataclasses.replace(study.depth, **causes))


def _section(text, name):
    found = re.search(rf"^ {name}:(.*?)(?=^ [A-Z]+:|\Z)", text, re.M | re.S)
    return " ".join(found[1].split()) if found else ""


def test_two_workers_write_the_same_bytes(folder, tmp_path):
    argv = [f"--target={tmp_path / 'two'}", *_SIZES, "--workers=2"]
    subprocess.run([sys.executable, _SCRIPT, *argv], check=True, capture_output=True)
    files = _files(folder)
    assert files == _files(tmp_path / "two")
    names = [str(f) for f in files]
    _, differ, odd = filecmp.cmpfiles(folder, tmp_path / "two", names, shallow=False)
    assert not differ and not odd


def test_a_lateral_depends_on_its_key_alone():
    key = latents.Key(5, "views_test", 7, 1)
    first = lateral.render(depth.study(key), _SMALL)
    latents.patient.cache_clear()
    lateral.render(depth.study(latents.Key(5, "views_test", 8)), _SMALL)
    assert np.array_equal(first, lateral.render(depth.study(key), _SMALL))
    other = dataclasses.replace(key, study=0)
    assert not np.array_equal(first, lateral.render(depth.study(other), _SMALL))


def test_depth_changes_no_cause_of_the_study(people):
    for study in people[:50]:
        base = latents.study(study.key)
        assert study.patient == base.patient and base.depth is None
        assert {n: study.labels[n] for n in latents.LABELS} == base.labels
        for name in ("fluid", "inflammation", "consolidation", "ap", "inspiration"):
            assert getattr(study, name) == getattr(base, name)


def test_prevalences_and_what_hides_from_the_frontal(people):
    for name in depth.LABELS:
        assert 0.11 < np.mean([s.labels[name] for s in people]) < 0.31, name
    wet = [s for s in people if s.labels["effusion"]]
    behind_only = np.mean([max(s.effusion) == 0 for s in wet])
    assert 0.4 < behind_only < 0.8
    assert all(max(s.depth.pleural) > 0.1 for s in wet if max(s.effusion) > 0)
    sick = [s.inflammation for s in people if s.labels["retrocardiac_opacity"]]
    assert np.mean(sick) > 0.3


def _region(study, view):
    """Mean grey of the place behind the heart, relative to the film's spread."""
    if view == "lateral":
        rng = study.key.rng("lateral")
        mirrored = rng.random() < 1 / 12
        pose = profile.draw_pose(study, rng, _SMALL, mirrored)
        film, at = lateral.render(study, _SMALL), (0.53, 0.44)
    else:
        pose = xray.anatomy.draw_pose(study, study.key.rng("xray"), _SMALL)
        film, at = xray.render(study, _SMALL), (0.22, 0.44)
    x, y = np.round(pose.inverse @ [*at, 1]).astype(int)
    patch = film[max(y - 5, 0) : y + 6, max(x - 5, 0) : x + 6].astype(float)
    return patch.mean() / 255


def test_retrocardiac_opacity_whitens_the_lower_spine_and_hardly_the_frontal(people):
    place = depth.Place(u=0.22, v=0.44, w=0.53, size=0.2, density=0.9)
    some = people[:30]
    gain = {}
    for view in ("lateral", "frontal"):
        there = [
            _region(_changed(s, retrocardiac=1.0, behind=place), view) for s in some
        ]
        gone = [_region(_changed(s, retrocardiac=0.0), view) for s in some]
        gain[view] = np.mean(there) - np.mean(gone)
    assert gain["lateral"] > 0.05
    assert gain["lateral"] > 1.5 * gain["frontal"] > -0.05


def test_fluid_fills_the_posterior_angle_first():
    study = depth.study(latents.Key(0, "views_train", 0))
    w = np.linspace(-0.9, 0.9, 50, dtype=np.float32)
    levels = [
        profile.fluid_level(w, _changed(study, pleural=(0.0, f)), profile.LEFT)
        for f in (0.0, 0.04, 0.1, 0.4)
    ]
    assert (levels[0] > 5).all()
    assert all((a > b).all() for a, b in zip(levels, levels[1:], strict=False))
    floor = profile.dome(w, study, profile.LEFT)
    filled = w[levels[1] < floor]
    assert filled.size and filled.min() > 0.3
    dry = xray.render(_changed(study, pleural=(0.0, 0.0)), _SMALL)
    wet = xray.render(_changed(study, pleural=(0.0, 0.05)), _SMALL)
    assert np.array_equal(dry, wet)


def test_the_lateral_shares_the_frontals_anatomy(people):
    some = people[:20]

    def heart(study, **causes):
        who = dataclasses.replace(study.patient, **causes)
        study = dataclasses.replace(study, patient=who)
        return profile.heart_radius(study, study.key.rng("lateral"))[0]

    for study in some:
        assert (heart(study, dilation=2.0).mean()) > heart(study, dilation=-1.0).mean()
    w = np.zeros(1, np.float32)
    flat = [
        profile.dome(w + 0.8, s, side) - profile.dome(w, s, side)
        for s in some
        for side in (profile.RIGHT, profile.LEFT)
    ]
    arch = [a for s in some for _, a in xray.anatomy.domes(s)]
    assert np.corrcoef(np.ravel(flat), arch)[0, 1] > 0.99


def test_mirrored_films_carry_the_other_letter_and_direction(people):
    kinds = collections.Counter(lateral.view(s) for s in people)
    assert set(kinds) == {"LL", "RL"} and 0.03 < kinds["RL"] / len(people) < 0.15
    for kind, sign in (("LL", 1), ("RL", -1)):
        study = next(s for s in people if lateral.view(s) == kind)
        rng = study.key.rng("lateral")
        mirrored = rng.random() < 1 / 12
        pose = profile.draw_pose(study, rng, _SMALL, mirrored)
        assert np.sign(pose.inverse[0, 0]) == sign


def test_a_report_mentions_what_its_findings_hold_and_nothing_else(people):
    words = dict(report_words.NOUNS)
    words["Cardiomegaly"] += ("heart size", "the heart ", "cardiac silhouette")
    words["Enlarged Cardiomediastinum"] += ("mediastin",)
    for study in people[:400]:
        text, found = report_text.write(study, study.key.rng("report"))
        assert set(found) == set(reports.FINDINGS)
        assert text.lstrip().startswith("FINAL REPORT")
        said = f"{_section(text, 'FINDINGS')} {_section(text, 'IMPRESSION')}".strip()
        assert said and "{" not in said and "|" not in said and "  " not in said
        assert ("___" in _section(text, "COMPARISON")) == (study.key.study > 0)
        for name in report_words.NOUNS:
            mentioned = any(word in said.lower() for word in words[name])
            assert mentioned == (found[name] != ""), (name, said)
        ill = [n for n, x in found.items() if x in (1.0, -1.0)]
        assert (found["No Finding"] == 1.0) == (
            not set(ill) - {"No Finding", "Support Devices"}
        )


def test_no_sentence_contradicts_its_label(people):
    negated = re.compile(
        r"\b(no|not|negative|normal|unremarkable|resolved|no longer)\b", re.I
    )
    for study in people[:400]:
        text, found = report_text.write(study, study.key.rng("report"))
        said = f"{_section(text, 'FINDINGS')} {_section(text, 'IMPRESSION')}"
        for sentence in re.split(r"(?<=\.) ", said):
            for name, nouns in report_words.NOUNS.items():
                if not any(n in sentence.lower() for n in nouns):
                    continue
                if found[name] == 1.0:
                    assert not negated.search(sentence), (name, sentence)
                elif found[name] == 0.0:
                    assert negated.search(sentence), (name, sentence)


def test_reports_follow_the_causes_and_the_views(people):
    def share(views):
        seen = collections.defaultdict(list)
        for s in people[:700]:
            found = report_text.write(s, s.key.rng("report"), views)[1]
            seen[s.labels["retrocardiac_opacity"]].append(found["Lung Opacity"] == 1.0)
        return np.mean(seen[1]), np.mean(seen[0])

    both, alone = share(("PA", "LL")), share(("PA",))
    assert both[0] > 0.8 and both[1] < 0.05
    assert alone[0] < 0.6 * both[0]


def test_wording_varies_and_the_vocabulary_is_small(people):
    texts = [report_text.write(s, s.key.rng("report"))[0] for s in people]
    assert len(set(texts)) > 0.95 * len(texts)
    words = set(re.findall(r"[a-z]+", " ".join(texts).lower()))
    assert 150 < len(words) < 500
    for name in ("FINDINGS", "IMPRESSION"):
        share = np.mean([bool(_section(t, name)) for t in texts])
        assert 0.8 < share < 0.99


def test_mimic_layout(folder):
    root = folder / "mimic_cxr"
    split, metadata = _table(folder, "split"), _table(folder, "metadata")
    assert [r["dicom_id"] for r in split] == [r["dicom_id"] for r in metadata]
    sizes = {"train": 24, "validate": 4, "test": 5}
    listed = set()
    for name, n in sizes.items():
        rows = [r for r in split if r["split"] == name]
        assert len({r["study_id"] for r in rows}) == n
    for row, meta in zip(split, metadata, strict=True):
        subject, study = row["subject_id"], row["study_id"]
        path = f"files/p{subject[:2]}/p{subject}/s{study}/{row['dicom_id']}.jpg"
        film = cv2.imread(str(root / path), cv2.IMREAD_UNCHANGED)
        assert film.ndim == 2 and min(film.shape) == 96
        assert (int(meta["Rows"]), int(meta["Columns"])) == film.shape
        assert meta["ViewPosition"] in ("", "PA", "AP", "LATERAL", "LL", "RL")
        assert views.parse(meta["ViewPosition"]) is not None
        listed.add(path)
    assert listed == {str(p.relative_to(root)) for p in (root / "files").rglob("*.jpg")}
    patients = [{r["subject_id"] for r in split if r["split"] == s} for s in sizes]
    assert sum(map(len, patients)) == len(set().union(*patients))


def test_mimic_labels_belong_to_studies_with_a_report(folder):
    root = folder / "mimic_cxr/mimic-cxr-reports/files"
    texts = {p.stem[1:]: p for p in root.rglob("s*.txt")}
    for name in ("chexpert", "negbio"):
        rows = _table(folder, name)
        assert list(rows[0]) == ["subject_id", "study_id", *mimic.FINDINGS]
        assert {r["study_id"] for r in rows} == set(texts)
        for row in rows:
            subject = row["subject_id"]
            place = texts[row["study_id"]].relative_to(root).parts
            assert place[:2] == (f"p{subject[:2]}", f"p{subject}")
            assert {row[n] for n in mimic.FINDINGS} <= {"1.0", "0.0", "-1.0", ""}


def test_films_of_a_study_and_their_listed_views(people):
    kinds, listed = collections.Counter(), []
    for s in people:
        rng = s.key.rng("films")
        names = mimic.films(s, rng)
        coarse = [views.coarse(n) for n in names]
        kinds[tuple(coarse)] += 1
        listed += [(n, mimic.listed_view(n, rng)) for n in names]
    share = {k: n / len(people) for k, n in kinds.items()}
    assert share["frontal", "lateral"] > 0.5
    assert 0.15 < share["frontal",] < 0.45 and 0.01 < share["lateral",] < 0.06
    assert share["frontal", "frontal"] > 0.02
    missing = np.mean([text == "" for _, text in listed])
    right = {"LL": ("LL", "LATERAL"), "RL": ("RL", "LATERAL")}
    wrong = np.mean([t not in ("", *right.get(n, (n,))) for n, t in listed])
    assert 0.02 < missing < 0.06 and 0.001 < wrong < 0.012


def test_views_probe_layout(folder):
    with open(folder / "views_probe/labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    head = ["path", "patient_id", "study_id", "split", "view", "age", "sex"]
    assert list(rows[0]) == head + list(depth.LABELS) and len(rows) == 22
    by_study = collections.defaultdict(list)
    for row in rows:
        assert (folder / "views_probe" / row["path"]).is_file()
        by_study[row["study_id"]].append(row)
    for pair in by_study.values():
        assert [views.coarse(r["view"]) for r in pair] == ["frontal", "lateral"]
        assert len({tuple(r[n] for n in depth.LABELS) for r in pair}) == 1


def test_folders_without_laterals_keep_their_films_and_findings():
    # From commit 649eff3, before laterals. Another draw moves a film's mean by more;
    # another machine's arithmetic by less.
    grey = [113.44, 170.76, 107.85, 76.98, 114.68, 112.0, 110.66, 104.05]
    said = (
        ".01101...0..0....1.10..01...1........0....1.........0...10.....00...0...1..0"
    )
    said += "..............0.1...0.........10...."
    some = [latents.study(latents.Key(1, "probe_test", p)) for p in range(8)]
    means = [xray.render(s).mean() for s in some]
    np.testing.assert_allclose(means, grey, atol=0.02)
    letter = {"": ".", 1.0: "1", 0.0: "0", -1.0: "u"}
    found = [reports.findings(s) for s in some]
    assert "".join(letter[v] for f in found for v in f.values()) == said


@pytest.mark.parametrize(
    "argv", [["--mimic=-1"], ["--views_val=-2"], ["--mimic=5", "--film_size=20"]]
)
def test_bad_sizes_give_one_line(argv, tmp_path, capsys):
    assert generate.main([f"--target={tmp_path / 'x'}", *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
