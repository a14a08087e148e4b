"""The numeric checks of `launch/gpu_check.py`, on whatever device JAX has.

  python -m tests.launch.gpu_numeric CHECK

They are the suite's: its recorded cases, its functions and its bounds. The last line of
standard output is JSON of all errors so far, each with its bound; the exit code is 1
where one is beyond it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding, target
from pacx_jax.models import attention as library
from tests.parity import comparing, record

# Tokens, heads and channels: the MAE's encoder and decoder, Stage 2, and others that
# are odd and even.
ATTENTION = (
    (20, 12, 64),
    (197, 16, 32),
    (197, 12, 64),
    (50, 12, 64),
    (49, 12, 64),
    (196, 16, 32),
)
# Of the largest entry. A bfloat16 has a relative spacing of 2^-8 = 0.0039, and scores,
# probabilities and gradients are each rounded to one.
ATTENTION_BOUND = 0.02
# Check -> functions of tests/parity and their parameters beside the fixtures.
MAE_STEP = "test_mae_prediction_loss_and_gradients_with_given_masks_equal"
MAE_RUN = "test_mae_equals_after_twenty_updates_at_a_rate_changed_every_epoch"
LABS_RUN = (
    "test_labs_autoencoder_equals_after_twenty_updates_at_a_rate_changed_every_step"
)
INFO_NCE = "test_info_nce_and_gradients_equal"
LENGTHS = "test_net1d_embedding_equals_at_5000_and_at_odd_lengths"
PARITY = {
    "mae": (
        ("models", "test_vit_tokens_of_all_patches_equal", {}),
        ("models", "test_vit_tokens_of_the_kept_patches_equal", {}),
        ("models", MAE_STEP, {"name": "loss"}),
        ("models", MAE_STEP, {"name": "norm_pix_loss"}),
        ("training", MAE_RUN, {}),
    ),
    "stage_two": (
        ("stage_two", "test_lora_forward_equals_pefts", {}),
        ("stage_two", "test_lora_merge_equals_pefts", {}),
        ("stage_two", "test_outputs_of_the_five_heads_equal", {}),
        ("stage_two", INFO_NCE, {"scale": "start", "smoothing": 0.02, "devices": 1}),
        ("stage_two", INFO_NCE, {"scale": "start", "smoothing": 0.0, "devices": 1}),
        ("stage_two", INFO_NCE, {"scale": "above", "smoothing": 0.02, "devices": 1}),
        ("stage_two", "test_cosine_regression_and_gradient_equal", {}),
    ),
    "ecg_labs": (
        ("models", LENGTHS, {"length": 333}),
        ("models", "test_net1d_logits_loss_and_gradients_equal", {}),
        ("models", "test_labs_reconstruction_loss_and_gradients_equal", {}),
        ("training", LABS_RUN, {}),
    ),
}


class Numbers:
    """Errors with their bounds, printed as they are found."""

    def __init__(self):
        self._rows: list[dict] = []

    def add(self, what: str, error: float, bound: float) -> None:
        """Notes an error; one that is no number is beyond its bound."""
        row = {"what": what, "error": float(error), "bound": bound}
        self._rows.append(row | {"within": bool(error <= bound)})
        n, within = len(self._rows), sum(row["within"] for row in self._rows)
        worst = max(r["error"] / r["bound"] if r["bound"] else r["error"]
                    for r in self._rows)  # fmt: skip
        text = f"{within} of {n} within their bounds, the furthest at {worst:.2g} of it"
        print(json.dumps({"numbers": self._rows, "summary": text}), flush=True)

    def measure(self, what, got, want, bound, relative=False) -> float:
        """As the fixture `measure` of the parity tests, without an assertion."""
        error, _ = comparing.largest_error(got, want, relative)
        self.add(what, error, bound)
        return error

    def end(self) -> None:
        """Exit code 1 and a line where a number is beyond its bound."""
        wrong = [
            f"{r['what']}: {r['error']:.1e}, bound {r['bound']:.0e}"
            for r in self._rows
            if not r["within"]
        ]
        if wrong:
            n = len(self._rows)
            sys.exit(f"error: {len(wrong)} of {n} beyond: {'; '.join(wrong)}")


def parity(name: str) -> None:
    """Recorded cases of PyTorch's, in float32 with whole products."""
    numbers, precision = Numbers(), comparing.PRECISIONS[0]
    mesh = sharding.make_mesh(1)

    def case(name: str) -> comparing.Case:
        return comparing.Case(record.load(name), precision)

    fixtures = {
        "case": case,
        "precision": precision,
        "measure": numbers.measure,
        "meshes": {1: mesh},
    }
    for module, function, parameters in PARITY[name]:
        test = getattr(importlib.import_module(f"tests.parity.test_{module}"), function)
        given = fixtures | parameters
        if "mae_case" in (wanted := inspect.signature(test).parameters):
            given["mae_case"] = case("mae")
        with jax.default_matmul_precision("highest"), sharding.tracing(mesh):
            test(**{k: v for k, v in given.items() if k in wanted})
    numbers.end()


def attention() -> None:
    """bfloat16 attention of this device, with its gradient, against float32's."""
    numbers, mesh = Numbers(), sharding.make_mesh(1)

    def run(function, dtype, heads, qkv, weights):
        def loss(qkv):
            out = function(qkv.astype(dtype), heads).astype(jnp.float32)
            return (out * weights).sum(), out

        with sharding.tracing(mesh):  # by which the library knows the device
            (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(qkv)
        return np.asarray(out), np.asarray(gradient)

    for tokens, heads, channels in ATTENTION:
        rng, width = np.random.default_rng(tokens), heads * channels
        qkv = rng.standard_normal((2, tokens, 3 * width), np.float32)
        qkv = qkv.astype(jnp.bfloat16).astype(np.float32)
        weights = rng.standard_normal((2, tokens, width), np.float32)
        got = run(library.attend, jnp.bfloat16, heads, qkv, weights)
        with jax.default_matmul_precision("highest"):
            want = run(library.as_written, jnp.float32, heads, qkv, weights)
        for what, x, y in zip(("attention", "gradient"), got, want, strict=True):
            error = np.abs(x - y).max() / np.abs(y).max()
            text = f"{what}, {tokens} tokens, {heads} heads of {channels}"
            numbers.add(text, error, ATTENTION_BOUND)
        with sharding.tracing(mesh):
            if target.platform() == "gpu":
                dtype = np.dtype(jnp.bfloat16)
                taken = library.cudnn_runs(tokens, heads, channels, dtype)
                numbers.add(f"cuDNN's is not taken, {tokens} tokens", not taken, 0.0)
    numbers.end()


def resume(stage: str) -> None:
    """A run that SIGTERM stops at its fifth update goes on to the last bit."""
    from pacx_jax import main, step
    from pacx_jax.distributed import preemption
    from tests.reliability import runs

    numbers = Numbers()
    runs.use_patients()
    with tempfile.TemporaryDirectory(prefix="pacx_check_") as folder:
        straight, stopped = (pathlib.Path(folder) / x for x in ("straight", "stopped"))
        main.run(runs.config(stage, {}, num_devices=1), str(straight))
        make_train_step = step.make_train_step
        runs.at_update(5, runs.ask_to_end)
        try:
            main.run(runs.config(stage, {}, num_devices=1), str(stopped))
            sys.exit("error: SIGTERM did not stop the run")
        except preemption.Preempted:
            step.make_train_step = make_train_step
        main.run(runs.config(stage, {}, num_devices=1), str(stopped))
        got, want = runs.state(stopped), runs.state(straight)
        if got.keys() != want.keys():
            sys.exit("error: the resumed state has other leaves")
        different = sum(got[k].tobytes() != want[k].tobytes() for k in want)
        numbers.add(f"leaves of {len(want)} that differ after resuming", different, 0)
        texts = [(p / "metrics.jsonl").read_text() for p in (stopped, straight)]
        rows = zip(*(text.splitlines() for text in texts), strict=True)
        lines = sum(one != other for one, other in rows)
        numbers.add("rows of metrics that differ after resuming", lines, 0)
    numbers.end()


def export() -> None:
    """A model folder and a StableHLO file, opened again on this device."""
    from pacx_jax.exporting import source, write
    from tests import tiny

    numbers = Numbers()
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for name in ("safetensors", "stablehlo"):
        for precision in ("highest", "default"):
            given = source.Source(tiny.folder("vit"))
            with (
                tempfile.TemporaryDirectory(prefix="pacx_check_") as folder,
                jax.default_matmul_precision(precision),
            ):
                path = pathlib.Path(folder)
                write.FORMATS[name].write(path, given)
                predict = write.FORMATS[name].reopen(path, given)
                error = write.compare(predict, given, images)["embedding"]
            text = f"{name}, the encoder's products in {precision} precision"
            numbers.add(text, error, write.LIMIT)
    numbers.end()


CHECKS = {
    "attention": attention,
    "export": export,
    **{f"parity_{name}": functools.partial(parity, name) for name in PARITY},
    **{f"resume_{stage}": functools.partial(resume, stage) for stage in ("mae", "ecg")},
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
