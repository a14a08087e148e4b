"""The folder in which a trained encoder travels: weights, description, model card.

  config.json         kind, architecture, preprocessing, pooling, format version
  model.safetensors   float32 weights, names as in the parameter tree, joined by "."
  README.md           the model card
  heads.safetensors   only where heads or a decoder are kept too (see model_heads)
  golden.safetensors  of exported X-ray encoders: images and their embeddings (golden)
  calibration.json    of classifiers: calibration, thresholds (evaluate.classifier)

Every stage writes one when it ends (`WORKDIR/export`), later stages and `load_encoder`
read it. Nothing of optimizers is in it, nor, unless asked for, of heads or decoders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pacx_jax import files, target
from pacx_jax.encoders import image_statistics, kinds, model_heads, model_sizes
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.models import positions
from pacx_jax.stores import packed, staging, urls
from pacx_jax.types import Params

FORMAT = 1
GOLDEN = "golden.safetensors"  # see golden.py
_NAMES = ("config.json", "model.safetensors", "README.md", model_heads.FILE, GOLDEN)
_NAMES += (model_heads.CALIBRATION,)
_PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What a folder holds, checked against its architecture.

    Attributes:
      kind: one of `kinds.KINDS`, such as "vit".
      architecture: the fields of the linen module.
      preprocessing: how raw data become the module's input.
      params: float32 numpy arrays, the module's parameter tree.
      heads: what stands beside the encoder, if anything does.
    """

    kind: str
    architecture: dict
    preprocessing: dict
    params: Params
    heads: Heads | None = None

    def module(self, dtype: str = "float32"):
        """The linen module that takes these parameters; PacxError for no dtype."""
        try:
            parsed = jnp.dtype(str if dtype is None else dtype)  # None would be float64
        except TypeError:
            parsed = jnp.dtype(str)
        widest = jax.dtypes.canonicalize_dtype("float64").name  # float64 if JAX has it
        if parsed.name not in ("float32", "bfloat16", "float16", widest):
            raise PacxError(f"dtype {dtype!r}: give float32 or bfloat16")
        return kinds.of(self.kind).module(self.architecture, parsed)

    @property
    def width(self) -> int:
        """Length of the embedding."""
        return kinds.of(self.kind).width(self.architecture)


def shapes_of(kind: str, architecture: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter the architecture has."""
    entry = kinds.of(kind)
    module = entry.module(architecture, jnp.float32)
    inputs = entry.inputs(architecture)
    tree = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    flat = flax.traverse_util.flatten_dict(tree, sep=".")
    return {name: leaf.shape for name, leaf in flat.items()}


def save(
    path: str | os.PathLike,
    model: ModelFolder,
    card: str,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a folder, whole or not at all; an existing model folder is replaced.

    A symbolic link at `path` is followed, and stays. `beside` has the contents of what
    else is written, by file name (`golden.beside`).

    Raises:
      PacxError: the parameters do not fit the architecture, or there is something else
        at `path`, which is left alone.
    """
    path = pathlib.Path(os.path.realpath(path))
    if path.is_symlink():
        raise PacxError(f"{path} is a symbolic link in a circle: give another folder")
    if path.exists() and not is_ours(path):
        raise PacxError(
            f"{path} exists and is no model folder: give a new or an empty folder"
        )
    flat = flax.traverse_util.flatten_dict(model.params, sep=".")
    # safetensors writes a non-contiguous array wrongly, without a word.
    flat = {k: np.ascontiguousarray(v, np.float32) for k, v in sorted(flat.items())}
    shapes = shapes_of(model.kind, model.architecture)
    _check(path, flat, shapes)
    entry = kinds.of(model.kind)
    entry.check_preprocessing(path, model.preprocessing, model.architecture)
    if model.heads:
        _check_heads(path, model.heads.flat(), model.heads, shapes)
    with files.whole_folder(path) as temporary:
        for name, data in (beside or {}).items():
            (temporary / name).write_bytes(data)
        _write(temporary, model, flat, card)


def is_ours(path: pathlib.Path) -> bool:
    """Whether it is an empty folder, or one that `save` wrote and nobody added to."""
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir()}
    if not names:
        return True
    try:  # other software has files of these names too
        about = files.read_json(path / "config.json")
    except (OSError, ValueError):
        return False
    return names <= {*_NAMES} and "format" in about


def _write(folder: pathlib.Path, model: ModelFolder, flat: dict, card: str) -> None:
    import safetensors.numpy  # imported lazily: not every model is in a folder

    safetensors.numpy.save_file(flat, folder / "model.safetensors")
    description = {
        "format": FORMAT,
        "kind": model.kind,
        "architecture": model.architecture,
        "preprocessing": model.preprocessing,
    }
    if model.heads:
        safetensors.numpy.save_file(model.heads.flat(), folder / model_heads.FILE)
        about = {"kind": model.heads.kind, "architecture": model.heads.architecture}
        description["heads"] = about
        if model.heads.calibration:
            found = json.dumps(model.heads.calibration, indent=1) + "\n"
            (folder / model_heads.CALIBRATION).write_text(found, encoding="utf-8")
    text = json.dumps(description, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors' are for the owner alone


# `ViT.pool` -> what the embedding is.
EMBEDDINGS = {
    "cls": "CLS token after the final LayerNorm",
    "mean": "mean of the patches' tokens, then the final LayerNorm",
}


def image_preprocessing(
    mean: Sequence[float], std: Sequence[float], pool: str = "cls"
) -> dict:
    """How decoded pixels become the input of a "vit"; of one mean, a grey one."""
    grey = "one channel; colour to grey by PIL's luma"
    return {
        "grey": "repeated to RGB" if len(mean) == 3 else grey,
        "resize": "PIL bilinear, antialiased, to image_size x image_size (squash)",
        "mean": list(mean),
        "std": list(std),
        "embedding": EMBEDDINGS[pool],
    }


def at_size(model: ModelFolder, image_size: int) -> ModelFolder:
    """A "vit" or "densenet" for `image_size` pixels a side; 0 leaves it as it is.

    Sin-cos positions are made for any grid; learned ones are resampled to it.

    Raises:
      PacxError: a size that the patches do not divide, or another than a "unified"
        was trained with.
    """
    a, params = dict(model.architecture), model.params
    if model.kind == "unified":
        if image_size not in (0, a["image_size"]):
            raise PacxError(
                f"image size {image_size}: this model's sequences are those of "
                f"{a['image_size']} pixels a side; leave it away"
            )
        return model
    size, patch = image_size or a["image_size"], a["patch_size"]
    if size < patch or size % patch:
        raise PacxError(
            f"image size {size} is not divisible by the encoder's patch_size {patch}"
        )
    a["image_size"] = size
    if a.get("posemb_grid"):
        grid, side = tuple(a["posemb_grid"]), size // patch
        how = a.get("posemb_resampling", "antialias")
        learned = positions.resample(params["pos_embed"], grid, (side, side), how)
        a["posemb_grid"] = [side, side]
        params = {**params, "pos_embed": np.asarray(learned)}
    return dataclasses.replace(model, architecture=a, params=params)


def trained_further(config, params: Params) -> ModelFolder:
    """The X-ray encoder of `config.model_init` with other parameters.

    Its images are those that the run read: their size, mean and std.
    """
    start = load(config.model_init, ("vit", "densenet"))
    mean, std = image_statistics.chosen(start, config.data)
    preprocessing = start.preprocessing | {"mean": list(mean), "std": list(std)}
    if start.kind == "vit":
        pool = start.architecture.get("pool", "cls")
        preprocessing = image_preprocessing(mean, std, pool)
    architecture = start.architecture | {"image_size": config.data.image_size}
    return ModelFolder(start.kind, architecture, preprocessing, params)


def resolve(path: str | os.PathLike) -> pathlib.Path:
    """The model folder at `path`, which may be a finished run's workdir.

    A remote one's local copy, without the states that a workdir has; that of a zip, or
    of hf://OWNER/NAME.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise PacxError(f"{path!r} is no path; give a model folder or a workdir")
    if str(path).startswith(packed.HUB):
        path = packed.from_hub(str(path), _NAMES)
    elif urls.is_remote(path):
        path = staging.local(path, wanted=_is_of_model)
    path = pathlib.Path(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        path = packed.unpacked(path, _NAMES)
    if not path.is_dir():
        found = "is a file" if path.exists() else "no such folder"
        more = "" if path.suffix not in _PYTORCH else ", made of it by pacx_jax.convert"
        raise PacxError(f"{path}: {found}; give a model folder or a workdir{more}")
    for candidate in (path, path / "export"):
        if (candidate / "model.safetensors").is_file():
            return candidate
    raise PacxError(
        f"{path} holds no model.safetensors, nor does its export/: give a folder "
        "written by a finished run or by pacx_jax.export"
    )


def with_image_size(config, workdir: str | os.PathLike = ""):
    """config with `data.image_size` filled in; 0 stands for that of `model_init`.

    A run that has begun has it in its record, whatever became of its `model_init`. What
    is no X-ray encoder leaves it as it is: who loads it says what is wrong.
    """
    if config.data.get("image_size", 1) or not config.get("model_init"):
        return config
    try:
        record = pathlib.Path(workdir) / "config.json"
        known = files.read_json(record) if workdir and record.is_file() else {}
        if known.get("model_init") == config.model_init:
            size = int(known["data"]["image_size"])
        else:
            about = files.read_json(resolve(config.model_init) / "config.json")
            size = int(about["architecture"]["image_size"])
    except (PacxError, OSError, ValueError, KeyError, TypeError):
        return config
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.image_size = size
    return config


def _is_of_model(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder in ("", "export") and file in _NAMES


def load(
    path: str | os.PathLike, kind: str | Sequence[str] | None = None
) -> ModelFolder:
    """Reads and checks a model folder.

    Args:
      path: a model folder or the workdir of a finished run.
      kind: the kind that the caller needs, or several.

    Raises:
      PacxError: no folder, another kind, or parameters that are missing, unexpected,
        wrongly shaped or not finite; the message lists them.
    """
    path = resolve(path)
    try:
        description = files.read_json(path / "config.json")
        found, architecture = description["kind"], description["architecture"]
        preprocessing, version = description["preprocessing"], description["format"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise PacxError(
            f"{path}/config.json is missing or damaged ({e}), or another software's: "
            "convert such by pacx_jax.convert"
        ) from None
    if version != FORMAT:
        raise PacxError(f"{path}/config.json has format {version}; this reads {FORMAT}")
    with _refusing(path, "architecture"):
        entry = kinds.of(found)
    wanted = (kind,) if isinstance(kind, str) else kind
    if wanted is not None and found not in wanted:
        *others, last = wanted
        needed = f"{', '.join(others)} or {last}" if others else last
        raise PacxError(f"{path} holds a {found} model, but a {needed} is needed here")
    flat = _read(path / "model.safetensors")
    target.check_backend()  # or the folder would be blamed for JAX's
    with _refusing(path, "architecture"):
        model_sizes.check(architecture, flat)
        entry.check(architecture)
        shapes = shapes_of(found, architecture)
    _check(path, flat, shapes)
    entry.check_preprocessing(path, preprocessing, architecture)
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    heads = _load_heads(path, description.get("heads"), shapes)
    return ModelFolder(found, architecture, preprocessing, params, heads)


def _load_heads(path: pathlib.Path, about: dict | None, shapes: dict) -> Heads | None:
    if about is None:
        return None
    flat = _read(path / model_heads.FILE)
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    file, calibration = path / model_heads.CALIBRATION, None
    if file.is_file():
        remedy = "export the model again, or delete the file to do without calibration"
        calibration = files.read_own_json(file, remedy)
    with _refusing(path, "heads"):
        heads = Heads(about["kind"], about["architecture"], params, calibration)
        model_sizes.check(heads.architecture, flat)
        _check_heads(path, flat, heads, shapes)
    return heads


@contextlib.contextmanager
def _refusing(path: pathlib.Path, part: str) -> Iterator[None]:
    """Names config.json in whatever its sizes raise: JAX raises many kinds."""
    try:
        yield
    except PacxError as e:
        text = str(e)
        raise PacxError(
            text if str(path) in text else f"{path}/config.json: {text}"
        ) from None
    except Exception as e:
        reason = str(e).strip().partition("\n")[0][:300] or type(e).__name__
        raise PacxError(f"{path}/config.json: bad {part}: {reason}") from None


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(file)
    except Exception as e:  # a header may claim what NumPy then refuses in its way
        if other := files.other_kind(files.read_bytes(file, 256)):
            raise PacxError(f"{file}: {other}") from None
        raise PacxError(f"{file} is unreadable: {e}; get the file again") from None


def _check_heads(path, flat: dict, heads: Heads, encoder: dict[str, tuple]) -> None:
    # What is never executed has no module to ask for its shape.
    known = {k: v for k, v in flat.items() if not k.startswith("unused.")}
    wanted = model_heads.shapes(heads.kind, heads.architecture, encoder)
    _check(f"{path}/{model_heads.FILE}", known, wanted)


def _check(path, flat: dict[str, np.ndarray], shapes: dict[str, tuple]) -> None:
    problems = [f"missing {name}" for name in sorted(set(shapes) - set(flat))]
    problems += [f"unexpected {name}" for name in sorted(set(flat) - set(shapes))]
    for name in sorted(set(flat) & set(shapes)):
        if flat[name].shape != shapes[name]:
            problems.append(f"{name} is {flat[name].shape}, not {shapes[name]}")
        elif flat[name].dtype != np.float32:
            problems.append(f"{name} is {flat[name].dtype}, not float32")
        elif not np.isfinite(flat[name]).all():
            problems.append(f"{name} has values that are not finite")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise PacxError(f"{path}: weights do not fit: {'; '.join(problems[:8])}{more}")
