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
    """One process, and one row of the table."""

    name: str
    group: str  # what --parts chooses it by
    command: tuple[str, ...]  # arguments of Python's
    limit: float  # seconds that it may take; more where time is left over
    # Variables; XLA_FLAGS is appended to what is set already.
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timed: bool = True  # it measures time: nothing else runs beside it


# (mode of MODES, what is chosen, flags of bench.py, variables): another way to compute
# a step, whose time stands beside the usual one's.
OTHER_FORMS = {
    "mae": ("gelu", "layer_norm", "dense", "update_in_branch"),
    "distill": ("low_rank", "gelu", "layer_norm"),
    "ecg --train": ("grouped_convolution", "silu"),
}
TRITON = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
CHOICES = (
    ("mae", "attention=xla", ("--attention=xla",), {}),
    ("distill", "attention=xla", ("--attention=xla",), {}),
    *(
        (mode, f"{name} in its other form", (f"--other_form={name}",), {})
        for mode, names in OTHER_FORMS.items()
        for name in names
    ),
    ("mae", "XLA's Triton products off", (), TRITON),
    ("mae", "autotune level 0", (), {"XLA_FLAGS": "--xla_gpu_autotune_level=0"}),
)
# Check of tests/launch/gpu_numeric.py -> seconds. None is timed: they run side by side.
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
    size, loop = (DRY, LOOP_DRY) if dry_run else (REAL, LOOP_REAL)

    def bench(group: str, mode: str, name: str, *flags: str, env=None) -> Part:
        command = ("launch/bench.py", *MODES[mode], *flags)
        return Part(name, group, command, LIMITS.get(mode, 90), env or {})

    def device(part: str, name: str, timed: bool) -> Part:
        command = ("-m", "launch.benchmarks.gpu_device", part, str(dry_run))
        return Part(name, "environment", command, 40, {} if timed else SHARED, timed)

    numeric = [
        Part(
            name.replace("_", " "),
            "numeric",
            ("-m", "tests.launch.gpu_numeric", name),
            limit,
            SHARED | (DETERMINISTIC if name.startswith("resume") else {}),
            timed=False,
        )
        for name, limit in NUMERIC.items()
    ]
    alone = [bench("bench", mode, mode, "--peer=none", *size) for mode in MODES]
    kind = ("--peer_mode=eager",) if dry_run else ()
    peers = [
        bench("peers", mode, f"{mode} beside PyTorch", *kind, *size) for mode in MODES
    ]
    choices = [
        bench("choices", mode, f"{mode}: {name}", "--peer=none", *size, *flags, env=env)
        for mode, name, flags, env in CHOICES
    ]
    real = ("--input=drawn", "--saves", *loop)
    saves = bench("loop", "mae", "mae --input=drawn --saves", *real)
    trace = ("--peer=none", *size, f"--profile={out}/trace")
    return [
        device("environment", "environment", False),
        *numeric,
        device("products", "dense products", True),
        *alone[:2],
        peers[0],
        choices[0],
        *alone[2:],
        saves,
        peers[1],
        *choices[1:],
        bench("trace", "mae", "trace", *trace),
        *peers[2:],
    ]
