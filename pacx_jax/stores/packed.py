"""Model folders that come as a zip file, or from the Hugging Face Hub (hf://)."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import zipfile
from collections.abc import Collection

from pacx_jax import files
from pacx_jax.errors import PacxError, install, one_line
from pacx_jax.stores import staging

HUB = "hf://"
_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?")
_WEIGHTS = "model.safetensors"
_MOST = 50  # times as large as packed: weights hardly shrink
_SPARE = 2**24  # bytes that may shrink more, as descriptions do


def from_hub(url: str, names: Collection[str]) -> pathlib.Path:
    """The local copy of a Hub repository's files, by huggingface_hub's cache.

    Args:
      url: hf://OWNER/NAME, with @REVISION if not its main branch.
      names: of the files that are fetched.

    Raises:
      PacxError: no such URL, no huggingface_hub, or the Hub refuses.
    """
    found = _NAME.fullmatch(url)
    if not found:
        raise PacxError(f"{url}: give hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    try:
        import huggingface_hub  # imported lazily: an extra
    except ImportError:
        raise PacxError(
            f"{url}: the Hub needs the package huggingface_hub: {install('hub')}, or "
            "download the model and give its folder"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            found[1], revision=found[2], allow_patterns=sorted(names)
        )
    except Exception as e:  # it raises its own, requests' and httpx's
        raise PacxError(
            f"{url}: cannot be had ({one_line(e)}); check its name, the network, and "
            "HF_TOKEN where it is private"
        ) from None
    return pathlib.Path(folder)


def unpacked(path: str | os.PathLike, names: Collection[str]) -> pathlib.Path:
    """The folder of a zip's model files, unpacked once below PACX_SCRATCH.

    Args:
      path: a .zip of a model folder or of a run's workdir, maybe within a folder.
      names: of the files that are unpacked.

    Raises:
      PacxError: no zip, one without a model, a damaged or encrypted one, or one that
        would unpack to far more than it holds.
    """
    target = staging.scratch() / "unpacked" / files.sha256(path)[:16]
    if target.is_dir():
        return target
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            folder = _folder(path, infos)
            wanted = {n: infos[folder + n] for n in names if folder + n in infos}
            size = sum(info.file_size for info in wanted.values())
            if size > _MOST * os.path.getsize(path) + _SPARE:
                raise PacxError(
                    f"{path}: it would unpack to {size / 2**20:,.0f} MiB, far more "
                    "than weights can be packed: it is no model's"
                )
            target.parent.mkdir(exist_ok=True)
            files.check_room(target.parent, size, f"what {path} holds", "or unpack it")
            with files.whole_folder(target) as new:
                for name, info in wanted.items():
                    with archive.open(info) as packed, (new / name).open("wb") as file:
                        shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as e:
        raise PacxError(
            f"{path}: damaged, encrypted or no zip ({one_line(e)}); get it again"
        ) from None
    return target


def _folder(path, names: Collection[str]) -> str:
    """The folder within a zip that holds the weights, "" or with a slash behind."""
    found = [n for n in names if n.rpartition("/")[2] == _WEIGHTS]
    if not found:
        raise PacxError(f"{path}: no {_WEIGHTS} in it; zip a model folder")
    return min(found, key=lambda n: (n.count("/"), n)).removesuffix(_WEIGHTS)
