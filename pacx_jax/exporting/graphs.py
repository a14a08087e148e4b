"""The encoder as one compiled graph: StableHLO by jax.export, ONNX by jax2onnx.

Normalisation is inside, the resize outside: uint8 (b, s, s, c) -> float32 (b, width),
and (b, c) logits with a head. b is symbolic.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.exporting.source import Source

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO, ONNX = "encoder.stablehlo", "encoder.onnx"
# Runtimes since onnxruntime 1.20 read these; newer ones would shut those out.
OPSET, IR_VERSION = 21, 10
# protobuf ends at 2 GiB a message: larger weights go into a file beside the graph.
INLINE_BYTES = 1_800_000_000


def write_stablehlo(folder: pathlib.Path, source: Source) -> None:
    """Writes the serialized export: StableHLO for PLATFORMS with a symbolic batch."""
    from jax import export

    (b,) = export.symbolic_shape("b")
    size = source.image_size
    images = jax.ShapeDtypeStruct((b, size, size, source.channels), jnp.uint8)
    # By default TPUs multiply in bfloat16, which is not the encoder that was compared.
    with jax.default_matmul_precision("highest"), _without_folders():
        exported = export.export(jax.jit(_outputs(source)), platforms=PLATFORMS)(images)
    (folder / STABLEHLO).write_bytes(exported.serialize())


def reopen_stablehlo(folder: pathlib.Path, source: Source) -> Callable:
    """The written file as a function of uint8 images."""
    from jax import export

    exported = export.deserialize(bytearray((folder / STABLEHLO).read_bytes()))
    call = jax.jit(exported.call)

    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        out = call(images)
        return tuple(np.asarray(x) for x in (out if source.head else (out,)))

    return predict


def use_stablehlo(source: Source) -> str:
    """How to open it, as Markdown."""
    return f"""```python
import jax, numpy as np
from jax import export

exported = export.deserialize(bytearray(open("{STABLEHLO}", "rb").read()))
images = np.zeros({_shape(source)}, np.uint8)
{", ".join(source.names)} = jax.jit(exported.call)(images)
```

Lowered for {", ".join(PLATFORMS)}; compared on the CPU. Matrix products have the
highest precision on every platform."""


def write_onnx(folder: pathlib.Path, source: Source) -> None:
    """Writes the ONNX graph, with labels and preprocessing as metadata."""
    import jax2onnx
    import onnx

    size = source.image_size
    images = jax.ShapeDtypeStruct((_batch(), size, size, source.channels), jnp.uint8)
    with _quiet("onnx_ir"):
        graph = jax2onnx.to_onnx(
            _outputs(source),
            [images],
            model_name="pacx_jax",
            opset=OPSET,
            input_names=["images"],
            output_names=list(source.names),
        )
    graph.ir_version = IR_VERSION
    description = source.description()
    metadata = {k: json.dumps(v) for k, v in description.items()}
    if source.head:
        metadata["labels"] = json.dumps(list(source.head.labels))
    onnx.helper.set_model_props(graph, metadata)
    data = {}
    if graph.ByteSize() > INLINE_BYTES:
        data = {"save_as_external_data": True, "location": f"{ONNX}.data"}
    onnx.save_model(graph, str(folder / ONNX), **data)


def reopen_onnx(folder: pathlib.Path, source: Source) -> Callable:
    """The written file in onnxruntime, as a function of uint8 images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / ONNX), providers=["CPUExecutionProvider"]
    )

    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(list(source.names), {"images": images}))

    return predict


def use_onnx(source: Source) -> str:
    """How to open it, as Markdown."""
    return f"""```python
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")
images = np.zeros({_shape(source)}, np.uint8)
{", ".join(source.names)}{"" if source.head else ","} = \
session.run(None, {{"images": images}})
```

Opset {OPSET}. The graph's metadata hold the preprocessing and, with a head, the labels
as JSON: `session.get_modelmeta().custom_metadata_map`."""


def _outputs(source: Source) -> Callable:
    """`forward`, where one output stands alone."""

    def forward(images):
        out = source.forward(images)
        return out if len(source.names) > 1 else out[0]

    return forward


def _shape(source: Source) -> tuple[int, ...]:
    """Of three images."""
    return (3, source.image_size, source.image_size, source.channels)


def _batch():
    from jax import export

    return export.symbolic_shape("b")[0]


@contextlib.contextmanager
def _without_folders():
    """Keeps this machine's folders out of the graph, whose locations name its sources.

    Where each operation came from stays, as the file's name and line.
    """
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, ".*/")
    try:
        yield
    finally:
        jax.config.update(name, before)


@contextlib.contextmanager
def _quiet(name: str):
    """Keeps a library's warnings, which nobody can act on, off the terminal."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
