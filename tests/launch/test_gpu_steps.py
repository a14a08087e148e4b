"""The train step of every recipe, at published size, as XLA compiles it for GPUs.

Needs JAX's CUDA plugin (docs/scaling.md), and no GPU. One of the compiles is in CI.
"""

import dataclasses
import importlib
import math
import os
import re

import pytest

from launch.planning import chips, compilers, hlo


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a compiled step is held to.

    Attributes:
      rows: of the batch, a GPU.
      forward, backward: calls of cuDNN's attention.
      temporaries: bytes recorded on 2026-11-29 for one H100, and for eight.
      sent: bytes of collectives, by kind, recorded for eight.
      copied: of the state's bytes, how much may be copied in float32: cuDNN's
        convolutions want kernels in a layout of their own.
    """

    rows: int
    forward: int
    backward: int
    temporaries: tuple[float, float]
    sent: dict[str, int]
    copied: float = 0.0


# The last block of an encoder whose CLS token alone is wanted has one query: no cuDNN.
# The recipes labs_dae and linear_probe are in float32, which cuDNN's does not take.
RECIPES = {
    "mae_vitb16": Expected(
        256, 20, 20, (9.003e9, 10.597e9), {"all-reduce": 223_422_980}
    ),
    "distill_vitb16": Expected(
        64,
        11,
        11,
        (3.759e9, 3.978e9),
        {"all-gather": 524_288, "all-reduce": 8_282_132, "reduce-scatter": 524_288},
    ),
    "chexmix_vitb": Expected(
        *(64, 12, 12, (7.509e9, 7.537e9), {"all-reduce": 382_900_244}),
        copied=0.02,  # kernels of the image tokenizer
    ),
    "labs_dae": Expected(1024, 0, 0, (0.019e9, 0.021e9), {"all-reduce": 1_365_200}),
    "linear_probe": Expected(256, 0, 0, (1.394e9, 1.394e9), {"all-reduce": 43_072}),
    "segment": Expected(
        64, 12, 0, (0.405e9, 0.701e9), {"all-reduce": 7_768_464}, copied=0.05
    ),
    "vq_f16": Expected(
        64, 0, 0, (3.865e9, 4.860e9), {"all-reduce": 27_384_272}, copied=1.0
    ),
    "ecg_net1d": Expected(
        64, 0, 0, (1.033e9, 1.123e9), {"all-reduce": 80_765_280}, copied=0.1
    ),
}
IN_CI = {("mae_vitb16", "gpu:1xH100")}
CASES = [
    pytest.param(
        recipe, gpus, marks=() if (recipe, gpus) in IN_CI else pytest.mark.full
    )
    for recipe in RECIPES
    for gpus in ("gpu:1xH100", "gpu:8xH100", "gpu:1xH200", "gpu:8xH200")
]


@pytest.fixture(autouse=True)
def plugin():
    """Skips where it is not installed; where PACX_CUDA names it, as in CI, fails."""
    if compilers.version("PACX_CUDA") == "none" and "PACX_CUDA" not in os.environ:
        pytest.skip("JAX's CUDA plugin is not installed (docs/scaling.md)")


def config_of(recipe, rows):
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.global_batch_size = rows
    return config


def state_copies(text):
    """Bytes of copies in float32: of parameters and moments, for nothing else is."""
    shapes = re.findall(r"= \(?f32\[([\d,]*)\]\S* .*?copy(?:-start)?\(", text)
    return sum(4 * math.prod(int(n) for n in s.split(",") if n) for s in shapes)


@pytest.mark.parametrize("recipe, gpus", CASES)
def test_step_compiles_for_gpus_as_it_should(recipe, gpus):
    want, topology = RECIPES[recipe], chips.parse(gpus)
    n = topology.devices
    step = compilers.compile_step(config_of(recipe, want.rows * n), gpus)
    found = hlo.kernels(step.text, topology.chip)
    temporaries, state = step.temporary_bytes_per_chip, step.aliased_bytes_per_chip
    print(recipe, gpus, temporaries, found["custom_calls"], found["model_ms"])
    calls = found["custom_calls"]
    assert calls.get("__cudnn$fmhaSoftmax", 0) == want.forward
    assert calls.get("__cudnn$fmhaSoftmaxBackward", 0) == want.backward
    # The state is donated: what takes no argument's place are metrics.
    assert step.output_bytes_per_chip < 2**16 < state
    assert state_copies(step.text) <= want.copied * state + 2**16
    if recipe == "mae_vitb16":  # its stream is row-major throughout
        assert "input_transpose_fusion" not in step.text
    sent = hlo.collectives(step.text, n)
    assert {one.group for one in sent} <= {n}
    found = {one.kind: one.bytes_per_chip for one in sent}
    assert found == ({} if n == 1 else pytest.approx(want.sent, rel=0.01))
    if "H100" in gpus:
        assert temporaries == pytest.approx(want.temporaries[n > 1], rel=0.1)
