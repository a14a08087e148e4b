"""The parts of `launch/gpu_check.py` that are not the bench's, a process each.

  python -m launch.benchmarks.gpu_work CHECK [ARGUMENTS]

The last line of standard output is JSON. Checks of numbers print theirs anew after
every number, each with its bound, and end with exit code 1 where one is beyond it. They
are the suite's own: its cases, its functions and its bounds, on whatever device JAX
has.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import importlib
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from launch.benchmarks import measure

MOST_TRACE = 16 * 2**20  # bytes
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
_PARITY = "tests.parity.test_"
# Check -> functions of the suite and their parameters beside the fixtures.
PARITY = {
    "mae": (
        ("models", "test_vit_tokens_of_all_patches_equal", {}),
        ("models", "test_vit_tokens_of_the_kept_patches_equal", {}),
        *(
            (
                "models",
                "test_mae_prediction_loss_and_gradients_with_given_masks_equal",
                {"name": name},
            )
            for name in ("loss", "norm_pix_loss")
        ),
        (
            "training",
            "test_mae_equals_after_twenty_updates_at_a_rate_changed_every_epoch",
            {},
        ),
    ),
    "stage_two": (
        ("stage_two", "test_lora_forward_equals_pefts", {}),
        ("stage_two", "test_lora_merge_equals_pefts", {}),
        ("stage_two", "test_outputs_of_the_five_heads_equal", {}),
        *(
            (
                "stage_two",
                "test_info_nce_and_gradients_equal",
                {"scale": scale, "smoothing": smoothing, "devices": 1},
            )
            for scale, smoothing in (("start", 0.02), ("start", 0.0), ("above", 0.02))
        ),
        ("stage_two", "test_cosine_regression_and_gradient_equal", {}),
    ),
    "ecg_labs": (
        (
            "models",
            "test_net1d_embedding_equals_at_5000_and_at_odd_lengths",
            {"length": 333},
        ),
        ("models", "test_net1d_logits_loss_and_gradients_equal", {}),
        ("models", "test_labs_reconstruction_loss_and_gradients_equal", {}),
        (
            "training",
            "test_labs_autoencoder_equals_after_twenty_updates_at_a_rate_changed_every_"
            "step",
            {},
        ),
    ),
}


class Numbers:
    """Errors with their bounds, printed as they are found."""

    def __init__(self):
        self._rows: list[dict] = []

    def add(self, what: str, error: float, bound: float) -> None:
        """Notes an error; one that is no number is beyond its bound."""
        within = bool(error <= bound)
        self._rows.append(
            {"what": what, "error": float(error), "bound": bound, "within": within}
        )
        print(json.dumps({"numbers": self._rows}), flush=True)

    def measure(self, what, got, want, bound, relative=False) -> float:
        """As the fixture `measure` of the parity tests, without an assertion."""
        from tests.parity import comparing

        error, _ = comparing.largest_error(got, want, relative)
        self.add(what, error, bound)
        return error

    def end(self) -> None:
        """Exit code 1 and a line where a number is beyond its bound."""
        wrong = [row for row in self._rows if not row["within"]]
        if wrong:
            worst = "; ".join(
                f"{r['what']}: {r['error']:.1e}, bound {r['bound']:.0e}" for r in wrong
            )
            sys.exit(f"error: {len(wrong)} of {len(self._rows)} beyond: {worst}")


def parity(name: str) -> None:
    """Recorded cases of PyTorch's, in float32 with whole products."""
    from pacx_jax import sharding
    from tests.parity import comparing, record

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
        test = getattr(importlib.import_module(_PARITY + module), function)
        given = fixtures | parameters
        if "mae_case" in (wanted := inspect.signature(test).parameters):
            given["mae_case"] = case("mae")
        with jax.default_matmul_precision("highest"), sharding.tracing(mesh):
            test(**{k: v for k, v in given.items() if k in wanted})
    numbers.end()


def attention() -> None:
    """bfloat16 attention of this device, with its gradient, against float32's."""
    from pacx_jax import sharding
    from pacx_jax.models import attention as library

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
    numbers.end()


def resume(stage: str) -> None:
    """A run that SIGTERM stops at its fifth update goes on to the last bit."""
    from pacx_jax import main, preemption, step
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


def environment() -> None:
    """Device, driver, versions and what XLA is told, as JSON."""
    device = jax.devices()[0]
    jax.block_until_ready(jnp.ones((8, 8)) @ jnp.ones((8, 8)))
    memory = device.memory_stats() or {}
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    found = {
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "device_mib": round(memory.get("bytes_limit", 0) / 2**20) or None,
        "nvidia_smi": _said("nvidia-smi", f"--query-gpu={query}", "--format=csv"),
        "cudnn": _cudnn(),
        "cores": measure.cores(),
        "autotune_level": measure.autotune_level(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {k: v for k, v in measure.versions().items() if v},
    }
    print(json.dumps(found))


def _said(*command: str) -> list[str] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def _cudnn() -> int | None:
    """The version of the cuDNN that JAX has loaded, as 91002 for 9.10.2."""
    maps = pathlib.Path("/proc/self/maps")
    text = maps.read_text() if maps.exists() else ""
    found = re.search(r"\S*/libcudnn\.so\S*", text)
    return ctypes.CDLL(found[0]).cudnnGetVersion() if found else None


def products(dry_run: str) -> None:
    """FLOP/s of dense bfloat16 products, which an MFU can be judged by."""
    n = 256 if dry_run == "True" else 8192
    a, b = (
        jax.random.normal(key, (n, n), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0))
    )
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    turns = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(20):
            c = product(a, b)
        jax.block_until_ready(c)
        turns.append(2 * n**3 * 20 / (time.perf_counter() - start))
    print(json.dumps({"n": n, "flops_per_s": measure.spread(turns)}))


def trace(out: str, *flags: str) -> None:
    """A trace of three steps of the MAE, gzipped, or how large it would have been."""
    from launch import bench

    with tempfile.TemporaryDirectory(prefix="pacx_check_") as folder:
        argv = ["mae", "--peer=none", *flags, f"--profile={folder}"]
        with contextlib.redirect_stdout(sys.stderr):
            if bench.main(argv):
                sys.exit(2)
        files = [p for p in pathlib.Path(folder).rglob("*") if p.is_file()]
        for path in [p for p in files if p.suffix != ".gz"]:
            with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
                shutil.copyfileobj(plain, packed)
        files = sorted(pathlib.Path(folder).rglob("*.gz"))
        files = [
            p for p in files if not p.name.endswith(".trace.json.gz")
        ]  # Perfetto's
        sizes = {p.name: p.stat().st_size for p in files}
        total = sum(sizes.values())
        if total > MOST_TRACE:
            sys.exit(
                f"error: the trace has {total / 2**20:.1f} MiB, more than "
                f"{MOST_TRACE // 2**20}: it was left out"
            )
        target = pathlib.Path(out) / "trace"
        target.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copy(path, target / path.name)
    print(json.dumps({"folder": str(target), "bytes": sizes}))


def main(argv: list[str]) -> None:
    """Runs one check."""
    check, *arguments = argv
    group, _, name = check.partition("_")
    if group in ("parity", "resume"):
        return {"parity": parity, "resume": resume}[group](name)
    known = (attention, export, environment, products, trace)
    {function.__name__: function for function in known}[check](*arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
