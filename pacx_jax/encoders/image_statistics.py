"""Mean and std of pixels, by which an encoder's images are normalised."""

from __future__ import annotations

from pacx_jax.errors import PacxError

NAMES = ("mean", "std")
NUMBERS = {1: "one number", 3: "three numbers"}  # by channels


def check(path, preprocessing: dict, architecture: dict) -> None:
    """Raises if a model folder's mean or std is unusable.

    Args:
      path: the folder, for the message.
      preprocessing, architecture: of a "vit".
    """
    channels = architecture.get("channels", 3)
    for name in NAMES:
        value = preprocessing.get(name) if isinstance(preprocessing, dict) else None
        good = isinstance(value, list) and len(value) == channels
        good = good and all(isinstance(x, (int, float)) for x in value)
        good = good and all(abs(x) <= 10 for x in value)  # of pixels in [0, 1]; no NaN
        if not good or (name == "std" and min(value) <= 0):
            raise PacxError(
                f"{path}/config.json: preprocessing.{name} is {value!r}; it must be "
                f"{NUMBERS[channels]} of at most 10, and std above 0"
            )


def check_size(folder, path, data) -> None:
    """Refuses images of another size or of other channels than the encoder's.

    Args:
      folder: the ModelFolder of a "vit".
      path: where it is from, for the message.
      data: `config.data`.
    """
    size = folder.architecture["image_size"]
    if data.image_size != size:
        raise PacxError(
            f"config.data.image_size is {data.image_size}, but the encoder in {path} "
            f"has {size}: set config.data.image_size to that, or make one for this "
            f"size by pacx_jax.export --encoder={path} --image_size={data.image_size}"
        )
    takes, given = folder.architecture.get("channels", 3), data.get("channels", 3)
    if given != takes:
        raise PacxError(
            f"config.data.channels is {given}, but the encoder in {path} takes "
            f"{takes}: set config.data.channels to that"
        )


def check_data(folder, path, data) -> None:
    """Refuses images of another size or normalisation than the encoder's."""
    check_size(folder, path, data)
    for name in NAMES:
        value = folder.preprocessing[name]
        if list(data[name]) != value:
            raise PacxError(
                f"config.data.{name} is {list(data[name])}, but the encoder in {path} "
                f"has {value}: set config.data.{name} to that"
            )


def chosen(folder, data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of a run: of `config.data`, or where these are () the folder's."""
    mean, std = (tuple(data[k]) or tuple(folder.preprocessing[k]) for k in NAMES)
    return mean, std
