"""Types that every other module uses: batches, parameters, objectives.

Data flows one way: Batch -> Objective -> TrainState -> the loop -> checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Params = Mapping[str, Any]  # a nested dict of arrays
Batch = Mapping[str, Array]  # every array has the global batch as its first axis
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is trained, and its loss. A new objective is one file that builds one.

    Attributes:
      init: key -> all parameters, one nested dict (trainable and frozen together).
      trainable: slash-joined parameter path -> whether it is trained. The rest is split
        off structurally: no gradient, no optimizer state.
      loss: (params, batch, key, train) -> (scalar loss, dict of scalar metrics).
        `params` is the whole tree; `train` is a keyword and turns dropout on.
      advance: (frozen parameters, what `loss` found) -> (frozen parameters, metrics),
        after each update, for parameters that no gradient moves, such as moving
        averages. `loss` may then find arrays besides scalars; those of a batch's parts
        are added with the parts' weights. Metrics are scalars.
      by_step: the loss also takes `step`, the number of updates before this one, by
        which a weight may rise.
      outputs: (params, batch, key) -> dict of arrays with leading axis b, the
        evaluation-mode outputs of each example; the loop gathers them over the
        validation set, dropping padding.
      summarize: dict of (n, ...) numpy arrays from `outputs`, over the whole
        validation set -> dict of floats, logged as `val/<name>`.
      pretrained: names of top-level parameter subtrees -> folder to load them from.
      entries: entries of an example to read besides modalities: "image" or "images"
        (of a study), "mask", "labels".
      readers: readers of the modalities whose arrays a batch holds, see
        `modalities.Reader`.
      teachers: modality -> frozen embeddings, one per example. A batch holds them as
        `<modality>_embedding` (b, d) and, if some study lacks the modality, also
        `<modality>_present` (b,). See `modalities.teachers`.
      weight: batch -> positive scalar that weights the losses of a batch's parts to
        that of the whole (config.accumulate): the number of examples, or of known
        entries. None if no average of parts is the loss of the whole.
      monitor: all parameters -> dict of scalars to log beside the losses.
      images: (params, batch, key) -> {name: uint8 (k, h, w, 3)} of a validation batch,
        for TensorBoard.
    """

    init: Callable[[jax.Array], Params]
    trainable: Callable[[str], bool]
    loss: Callable[..., tuple[Array, Metrics]]
    outputs: Callable[[Params, Batch, jax.Array], dict[str, Array]]
    summarize: Callable[[dict[str, np.ndarray]], dict[str, float]]
    advance: Callable[[Params, Metrics], tuple[Params, Metrics]] | None = None
    by_step: bool = False
    pretrained: Mapping[str, str] = dataclasses.field(default_factory=dict)
    entries: tuple[str, ...] = ("image",)
    readers: tuple[Any, ...] = ()
    teachers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight: Callable[[Batch], Array] | None = None
    monitor: Callable[[Params], Metrics] | None = None
    images: Callable[[Params, Batch, jax.Array], dict[str, Array]] | None = None
