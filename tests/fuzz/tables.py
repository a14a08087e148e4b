"""Tables, lists and prepared sets to damage, and how they are read."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import pathlib
import shutil
import tempfile

from data import prepare
from pacx_jax.input import folders, images, listed, sources
from tests.data import published_trees
from tests.data.test_prepare_mimic_labs import draw as draw_labs
from tests.data.test_prepare_mimic_labs import plain_events
from tests.fuzz import damage
from tests.fuzz.images import pngs
from tests.fuzz.readers import Reader

_LABELS = b"""path,patient_id,split,AF,Mass
a.png,1,train,0,1
d/b.png,2,train,1,-1
d/c.png,3,val,,0
"""
_FINDINGS = b"""Image Index,Finding Labels,Patient ID,
a.png,No Finding,1,
b.png,Hernia|Mass,2,
c.png,,3,
"""


def _draw_folder(folder: pathlib.Path) -> None:
    for name in ("a", "d/b", "d/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.png").write_bytes(pngs()[1])
    (folder / "labels.csv").write_bytes(_LABELS)


def _draw_list(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "list.csv").write_bytes(_LABELS)


def inside(root: pathlib.Path, paths) -> None:
    """Asserts that every path stays under the root."""
    top = os.path.realpath(root)
    for path in paths:
        real = os.path.realpath(root / path)
        assert os.path.commonpath([top, real]) == top, f"{path} is outside of {root}"
        assert os.path.isfile(real)


def _read_folder(path: pathlib.Path) -> None:
    spec = folders.FolderSpec(path=str(path.parent))
    listing = folders.read_folder(spec)
    n = len(listing.paths)
    assert len(listing.splits) == n == len(listing.labels)
    assert set(listing.splits) <= set(sources.SPLITS)
    inside(path.parent, listing.paths)


def _read_published(name: str):
    def read(path: pathlib.Path) -> None:
        root = path.parents[len(pathlib.PurePath(_TABLES[name]).parts) - 1]
        flags = [name.split("/")[0], f"--source={root}", "--target=unused"]
        plan = published_trees.module(name.split("/")[0]).make_plan(
            root, prepare.parse([*flags, "--allow_missing"])
        )
        for rows in plan.splits.values():
            if isinstance(rows[0], tuple) and isinstance(rows[0][0], str):
                inside(root, [row[0] for row in rows])

    return read


_SHARD = "folder-train.array_record-00000-of-00001"
_TABLES = {
    "tb": "shenzhen_metadata.csv",
    "vindr_cxr": "annotations/image_labels_train.csv",
    "nih14": "Data_Entry_2017.csv",
    "nih14/v2020": "test_list.txt",
    "chexchonet": "metadata.csv",
    "covidx": "train.txt",
    "cxlseg": "CXLSeg-split.csv",
    "mimic_cxr": "mimic-cxr-reports/files/p10/p10000032/s50414267.txt",
    "mimic_cxr/newer": "mimic-cxr-2.1.0-split.csv",
    "padchest/flat": "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
    "openi": "ecgen-radiology/3.xml",
    "rsna_pneumonia": published_trees.RSNA_MAPPING,
    "rsna_pneumonia/unmapped": "stage_2_train_labels.csv",
    "siim_acr": "stage_2_train.csv",
    "tbx11k": "annotations/json/TBX11K_train.json",
    "tbx11k/xml": "annotations/xml/tb0010.xml",
    "tbx11k/copy": "data.csv",
}


def _events(path: pathlib.Path) -> None:
    root = path.parent.parent
    flags = ["mimic_labs", f"--source={root}", "--target=unused", "--workers=1"]
    with contextlib.redirect_stderr(io.StringIO()):
        plan = published_trees.module("mimic_labs").make_plan(
            root, prepare.parse(flags)
        )
        plan = plan.complete() if plan.complete else plan
    for rows in plan.splits.values():
        for row in rows:
            plan.make(row)


def _draw_labs(folder: pathlib.Path) -> None:
    draw_labs(folder, plain_events(), zipped=False)


@functools.cache
def _prepared() -> pathlib.Path:
    """A prepared folder of images; made once, removed with the process."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="pacx_fuzz_prepared_"))
    import atexit

    atexit.register(shutil.rmtree, root, ignore_errors=True)
    _draw_folder(root / "in")
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        code = prepare.main(["folder", f"--source={root}/in", f"--target={root}/out"])
    assert code == 0
    return root / "out"


def _draw_prepared(folder: pathlib.Path) -> None:
    shutil.copytree(_prepared(), folder, dirs_exist_ok=True)


def _read_prepared(path: pathlib.Path) -> None:
    source = sources.PreparedSource(str(path.parent), "train")
    source.patients()
    for i in range(min(len(source), 4)):
        example = source[i]
        assert set(source.entries) <= set(example)
        images.decode(example["image"], source.name(i))


def _table(file: str, draw, read, **more) -> Reader:
    return Reader(file, draw, read, damage.of_text, **more)


def _of_prepared(file: str, how) -> Reader:
    return Reader(file, _draw_prepared, _read_prepared, how)


READERS = {
    "labels.csv": _table(
        "labels.csv", _draw_folder, _read_folder, seeds=lambda: [_FINDINGS]
    ),
    "subset_list": _table("list.csv", _draw_list, lambda path: listed.read(str(path))),
    "pacx.json": _of_prepared("pacx.json", damage.of_json),
    "features.json": _of_prepared("features.json", damage.of_json),
    "dataset_info.json": _of_prepared("dataset_info.json", damage.of_json),
    "ArrayRecord": _of_prepared(_SHARD, damage.of_bytes),
    "labevents.csv": _table("hosp/labevents.csv", _draw_labs, _events),
} | {
    f"prepare {name}": _table(file, published_trees.DRAW[name], _read_published(name))
    for name, file in _TABLES.items()
}
