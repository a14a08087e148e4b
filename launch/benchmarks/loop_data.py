"""Data for the loop: a folder that the user names, or simulated patients drawn here."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import subprocess
import sys

import flax
import numpy as np

from launch.benchmarks import recipes
from launch.benchmarks.worker import ROOT
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input import prepared

DRAWN = {  # mode -> sizes of the cohort, builder, folder; X-rays need none
    "distill": (
        ("--symile=200", "--symile_val=20", "--symile_test=10"),
        "symile_mimic",
        "symile_mimic",
    ),
    "ecg": (("--ecg=200",), "ecg_array", "ecg"),
}
NOTHING = ("pretrain", "symile", "ecg", "probe_train", "probe_val", "probe_test")


def point_at(config, options: argparse.Namespace, folder: pathlib.Path) -> None:
    """Sets config.data to what --input says, and draws it in `folder` if it says so."""
    data, path = config.data, options.input
    if path == "drawn":
        path = str(draw(options.mode, folder))
    elif not pathlib.Path(path).is_dir():
        raise PacxError(f"--input={path}: no such folder; or give synthetic or drawn")
    is_prepared = (pathlib.Path(path) / prepared.FILE).is_file()
    data.source, data.path = "prepared" if is_prepared else "folder", path
    data.simulated, data.cache = options.input == "drawn", False
    if options.mode == "ecg":
        data.label_columns = ()  # all that there are
    if not is_prepared:
        data.val_fraction = 0.02  # the loop ends with an evaluation, which is not timed
    if options.workers > 0:
        data.workers = options.workers


def draw(mode: str, folder: pathlib.Path) -> pathlib.Path:
    """Simulated patients of a mode, prepared; X-rays alone as a folder of JPEGs.

    By processes of their own, which leave neither memory nor threads behind.
    """
    if mode not in DRAWN:
        _python("-m", "launch.benchmarks.input_pipeline", str(folder / "films"))
        return folder / "films"
    sizes, builder, name = DRAWN[mode]
    argv = [f"--target={folder}", *(f"--{name}=0" for name in NOTHING), *sizes]
    _python("data/cohort/generate.py", *argv)
    argv = [f"--source={folder / name}", f"--target={folder / 'drawn'}"]
    _python("data/prepare.py", builder, *argv)
    return folder / "drawn"


def _python(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise PacxError(f"{argv[0]} failed: what it said stands above")


def write_starts(config, folder: pathlib.Path) -> None:
    """Folders of random weights that distillation starts from, named in the config."""
    ecg = {"sampling_rate": 500, "decimate": config.data.ecg_decimate}
    config.model_init = _write(recipes.image_encoder(config), folder / "mae")
    for name, source in recipes.physiology_sources(config).items():
        preprocessing = ecg if name == "ecg" else {}
        source = dataclasses.replace(source, preprocessing=preprocessing)
        setattr(config, f"{name}_init", _write(source, folder / name))


def _write(model: model_folder.ModelFolder, path: pathlib.Path) -> str:
    rng = np.random.default_rng(0)
    shapes = model_folder.shapes_of(model.kind, model.architecture)
    flat = {
        name: rng.normal(0, max(shape[:-1], default=1) ** -0.5, shape)
        for name, shape in shapes.items()
    }
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    model_folder.save(path, dataclasses.replace(model, params=params), "random weights")
    return str(path)
