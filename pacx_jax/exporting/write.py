"""Writes an export, opens it again, compares it with the encoder, and keeps it then."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pacx_jax.encoders import golden, model_folder
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.errors import PacxError, install
from pacx_jax.exporting import folder, graphs, pytorch, web
from pacx_jax.exporting.source import Source
from pacx_jax.files import read_json, whole_folder

LIMIT = 1e-4  # largest absolute error of an output
ABOUT = "pacx_export.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to write an encoder.

    Attributes:
      packages: what writing and opening import beside our own needs.
      extra: which of setup.py's extras installs them.
      write: (folder, source) -> None; writes the files.
      reopen: (folder, source) -> function of uint8 (n, s, s, 3) to the outputs.
      use: source -> how to open it, for the README.
      normalised: whether normalised floats go in, and not uint8.
      lacks: source -> what the format has no place for; "" for nothing.
    """

    packages: tuple[str, ...]
    extra: str
    write: Callable
    reopen: Callable
    use: Callable | None
    normalised: bool = False
    lacks: Callable = lambda source: ""


FORMATS = {
    "safetensors": Format((), "", folder.write, folder.reopen, None),
    "stablehlo": Format(
        ("flatbuffers",),
        "stablehlo",
        graphs.write_stablehlo,
        graphs.reopen_stablehlo,
        graphs.use_stablehlo,
    ),
    "onnx": Format(
        ("jax2onnx", "onnx", "onnxruntime"),
        "onnx",
        graphs.write_onnx,
        graphs.reopen_onnx,
        graphs.use_onnx,
    ),
    "timm": Format(
        ("torch", "timm"),
        "convert",
        pytorch.write_timm,
        pytorch.reopen_timm,
        pytorch.use_timm,
        normalised=True,
        lacks=pytorch.timm_lacks,
    ),
    "hf": Format(
        ("torch", "transformers"),
        "convert",
        pytorch.write_hf,
        pytorch.reopen_hf,
        pytorch.use_hf,
        normalised=True,
        lacks=pytorch.hf_lacks,
    ),
    "web": Format(
        ("jax2onnx", "onnx", "onnxruntime"), "web", web.write, web.reopen, web.use
    ),
}


class Report(NamedTuple):
    """Where the export is, and output -> its largest difference from the encoder's."""

    path: pathlib.Path
    errors: dict[str, float]
    images: str  # what it was compared on

    def __str__(self) -> str:
        return _sentence(self.errors, self.images)


def export(
    source: Source,
    name: str,
    out: str | os.PathLike,
    images: Sequence,
    words: str = "given images",
) -> Report:
    """Writes `source` to the folder `out`, whole and compared, or not at all.

    Args:
      source: the encoder.
      name: one of `FORMATS`.
      out: a new or empty folder, or an earlier export in the same format.
      images: X-rays to compare on (paths or uint8 arrays), at least one.
      words: what these are.

    Raises:
      PacxError: something else is at `out`, a package is missing, an image cannot be
        read, or the reopened export differs from the encoder by more than LIMIT.
    """
    if name not in FORMATS:
        raise PacxError(f"--format {name!r}: choose one of {', '.join(FORMATS)}")
    form, out = FORMATS[name], pathlib.Path(out).absolute()
    _refuse_foreign(out, name)
    if lacking := form.lacks(source):
        raise PacxError(f"--format {name}: {lacking}; choose stablehlo or onnx")
    _require(name, form)
    pixels = np.stack([source.encoder.preprocess(x) for x in images])
    words = f"{len(pixels)} {words}"
    with whole_folder(out) as temporary:
        errors = _write_and_compare(name, temporary, source, pixels)
        wrong = {k: v for k, v in errors.items() if not v <= LIMIT}  # NaN is wrong
        if wrong:
            raise PacxError(
                f"--format {name}: opened again it is not the encoder: "
                f"{_sentence(wrong, words)}; the limit is {LIMIT:g}. Nothing was kept"
            )
        if form.use:
            _describe(temporary, source, name, errors, words)
    return Report(out, errors, words)


def copy(model: ModelFolder, card: str, out: str | os.PathLike) -> None:
    """A model folder of any kind at `out`, read again and the same to the bit.

    Raises:
      PacxError: something else is at `out`, or what was read again is not the model.
    """
    out = pathlib.Path(out).absolute()
    _refuse_foreign(out, "safetensors")
    with whole_folder(out) as temporary:
        model_folder.save(temporary, model, card)
        folder.check_same(temporary, model)


def _write_and_compare(
    name: str, path: pathlib.Path, source: Source, pixels: np.ndarray
) -> dict[str, float]:
    form = FORMATS[name]
    try:
        form.write(path, source)
        return compare(form.reopen(path, source), source, pixels)
    except PacxError:
        raise
    except Exception as e:  # other people's code
        raise PacxError(
            f"--format {name}: cannot be written or opened again: "
            f"{type(e).__name__}: {e}. Nothing was kept"
        ) from e


def compare(predict: Callable, source: Source, images: np.ndarray) -> dict[str, float]:
    """Largest absolute difference of each output from the encoder's.

    Args:
      predict: the reopened export.
      source: the encoder.
      images: uint8 (n, s, s, 3). They go in as one and as n - 1, at least two, so that
        a batch size that was fixed by mistake is found.

    Raises:
      PacxError: outputs of another number or shape.
    """
    images = images[np.arange(max(len(images), 3)) % len(images)]
    expected = source.expected(images)
    parts = (predict(images[:1]), predict(images[1:]))
    found = [np.concatenate(x) for x in zip(*parts, strict=True)]
    shapes, wanted = [x.shape for x in found], [x.shape for x in expected]
    if shapes != wanted:
        raise PacxError(f"the reopened export gives shapes {shapes}, not {wanted}")
    return {
        name: float(np.abs(np.asarray(x, np.float64) - y).max())
        for name, x, y in zip(source.names, found, expected, strict=True)
    }


def _require(name: str, form: Format) -> None:
    for package in form.packages:
        try:
            importlib.import_module(package)
        except Exception as e:  # mismatched builds raise more than ImportError
            missing = isinstance(e, ModuleNotFoundError) and e.name == package
            reason = "is not installed" if missing else f"cannot be imported ({e})"
            raise PacxError(
                f"--format {name} needs {package}, which {reason}: "
                f"{install(form.extra)}"
            ) from None


def _refuse_foreign(path: pathlib.Path, name: str) -> None:
    """Whatever is at `path` must be an export of the same format, or nothing."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir():
        ours = set()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = read_json(path / ABOUT)
            ours = set(about["files"]) if about["format"] == name else ours
        here = {p.name for p in path.iterdir()}
        if not here or here <= ours:
            return
        if name == "safetensors" and model_folder.is_ours(path):
            return
    raise PacxError(
        f"--out {path} exists and is no earlier {name} export: give a new or an empty "
        "folder"
    )


def _describe(
    path: pathlib.Path, source: Source, name: str, errors: dict, words: str
) -> None:
    for file, data in golden.beside(source.model).items():
        (path / file).write_bytes(data)
    measured = {"errors": errors, "images": words, "limit": LIMIT}
    files = sorted({p.name for p in path.iterdir()} | {ABOUT, "README.md"})
    about = {"format": name, "files": files, "compared": measured}
    about |= source.description(FORMATS[name].normalised)
    text = json.dumps(about, indent=2) + "\n"
    (path / ABOUT).write_text(text, encoding="utf-8")
    use = FORMATS[name].use(source)
    head = ""
    if source.head:
        head = (
            f"`logits`: {', '.join(source.head.labels)} ({source.head.task}), from "
            "a trained linear layer on the embedding.\n"
        )
    card = f"""# An X-ray encoder of pacx_jax as {name}

{use}

`{ABOUT}` says what goes in and comes out. Images are {_grey(source)} and
squashed to {source.image_size} x {source.image_size} pixels by PIL's bilinear filter.
The embedding is the CLS token after the final LayerNorm, {source.model.width} numbers.
{head}
Opened again and compared with the encoder: {_sentence(errors, words)}.
`{golden.FILE}` has 4 images and their embeddings, to compare with on another machine.

---

{_without_use(source.card)}"""
    (path / "README.md").write_text(card, encoding="utf-8")


def _grey(source: Source) -> str:
    levels = "grey levels" + (" repeated to RGB" if source.channels == 3 else "")
    if not source.with_views:
        return levels
    return f"{levels}, all taken for views of the kind {source.view!r},"


def _without_use(card: str) -> str:
    """A model card without its section on opening the model folder: here is another."""
    return re.sub(r"^## Use\n.*?(?=^## |\Z)", "", card, flags=re.DOTALL | re.MULTILINE)


def _sentence(errors: dict[str, float], words: str) -> str:
    each = ", ".join(f"{value:.1e} ({key})" for key, value in errors.items())
    return f"largest error {each} on {words}"
