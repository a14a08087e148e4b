"""What `launch/gpu_check.py` runs: one table of parts, and one of choices.

Parts stand in the order of their worth: where the time ends, what follows is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from launch.benchmarks import measure

MODES = {  # name -> how bench.py is asked for it
    "mae": ("mae",),
    "distill": ("distill",),
    "embed": ("embed",),
    "ecg": ("ecg",),
    "ecg --train": ("ecg", "--train"),
}
LIMITS = {"mae": 150, "distill": 120}  # seconds, mostly of compiling; others 90
# A part of a published size on a GPU, and with --dry_run on a CPU.
REAL = ("--repeats=3", "--steps=20")
DRY = ("--variant=mu", "--batch=8", "--repeats=2", "--steps=1", "--devices=1")
LOOP_REAL = ("--repeats=4", "--steps=20", f"--workers={max(1, measure.cores() - 2)}")
LOOP_DRY = ("--variant=mu", "--batch=8", "--repeats=2", "--steps=2", "--devices=1")


@dataclasses.dataclass(frozen=True)
class Part:
    """One process, and one row of the table.

    Attributes:
      name: of the row.
      group: what --parts chooses it by.
      command: arguments of Python's.
      limit: seconds that it may take; more where time is left over.
      env: variables; XLA_FLAGS is appended to what is set already.
      timed: measures time, so that nothing else runs beside it.
    """

    name: str
    group: str
    command: tuple[str, ...]
    limit: float
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timed: bool = True


@dataclasses.dataclass(frozen=True)
class Choice:
    """Another way to compute a step, whose time stands beside the usual one's.

    Attributes:
      mode: of MODES.
      name: what is chosen, as FIELD=VALUE or words.
      flags: of bench.py; --set=FIELD=VALUE sets any field of the config.
      env: variables of the process.
    """

    mode: str
    name: str
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _other_forms(mode: str, *operations: str) -> tuple[Choice, ...]:
    """Of operations of `target.HAND_WRITTEN`: the form that is not usual on a GPU."""
    return tuple(
        Choice(mode, f"{name} in its other form", (f"--other_form={name}",))
        for name in operations
    )


CHOICES = (
    Choice("mae", "attention=xla", ("--set=attention=xla",)),
    Choice("distill", "attention=xla", ("--set=attention=xla",)),
    *_other_forms("mae", "gelu", "layer_norm", "dense", "update_in_branch"),
    *_other_forms("distill", "low_rank", "gelu", "layer_norm"),
    *_other_forms("ecg --train", "grouped_convolution", "silu"),
    Choice(
        "mae",
        "XLA's Triton products off",
        env={"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"},
    ),
    Choice(
        "mae",
        "autotune level 0",
        env={"XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    ),
)
# Check of gpu_numeric.py -> seconds. None is timed, so they run side by side.
NUMERIC = {
    "attention": 60,
    "parity_mae": 90,
    "parity_stage_two": 90,
    "parity_ecg_labs": 90,
    "resume_mae": 90,
    "resume_ecg": 90,
    "export": 60,
}
DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
# Side by side, none may take three quarters of the GPU at its start, as JAX does.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
GROUPS = ("environment", "numeric", "bench", "choices", "loop", "peers", "trace")


def parts(out: str, dry_run: bool) -> list[Part]:
    """All parts, in the order in which they run.

    Args:
      out: folder of the results, where the trace goes.
    """
    size = DRY if dry_run else REAL
    benches = {name: _bench(argv, "--peer=none", *size) for name, argv in MODES.items()}
    kind = ("--peer_mode=eager",) if dry_run else ()
    peers = [
        Part(
            f"{name} beside PyTorch", "peers", _bench(argv, *kind, *size), _limit(name)
        )
        for name, argv in MODES.items()
    ]
    choices = [
        Part(
            f"{c.mode}: {c.name}",
            "choices",
            (*benches[c.mode], *c.flags),
            _limit(c.mode),
            c.env,
        )
        for c in CHOICES
    ]
    loop = LOOP_DRY if dry_run else LOOP_REAL
    saves = _bench(("mae",), "--input=drawn", "--saves", *loop)
    measured = [
        Part(name, "bench", argv, _limit(name)) for name, argv in benches.items()
    ]
    return [
        Part("environment", "environment", _device("environment"), 40, SHARED, False),
        *_numeric(),
        Part("dense products", "environment", _device("products", dry_run), 40),
        *measured[:2],
        peers[0],
        choices[0],
        *measured[2:],
        Part("mae --input=drawn --saves", "loop", saves, 120),
        peers[1],
        *choices[1:],
        Part("trace", "trace", _device("trace", out, *size), 90),
        *peers[2:],
    ]


def _numeric() -> list[Part]:
    return [
        Part(
            name.replace("_", " "),
            "numeric",
            ("-m", "launch.benchmarks.gpu_numeric", name),
            limit,
            SHARED | (DETERMINISTIC if name.startswith("resume") else {}),
            timed=False,
        )
        for name, limit in NUMERIC.items()
    ]


def _limit(mode: str) -> float:
    return LIMITS.get(mode, 90)


def _bench(argv: tuple[str, ...], *more: str) -> tuple[str, ...]:
    return ("launch/bench.py", *argv, *more)


def _device(part: str, *arguments) -> tuple[str, ...]:
    return ("-m", "launch.benchmarks.gpu_device", part, *map(str, arguments))
