"""Kernels of a step compiled for a GPU, and what they take: XLA's estimates and ours.

XLA writes its estimate of a kernel's time into the compiled text where
`xla_gpu_collect_cost_model_stats` is set ("reification_cost"): of cuBLAS's products,
of most collectives and of fusions. It has none for cuDNN's kernels and for copies. Ours
for these is a roofline of their shapes, from half of the chip's peak and all of its
memory's bandwidth:

  attention     max(F / flops, B / bandwidth),  F = 4 b h n m c forward, 10 b h n m c
                backward (b images, h heads, n queries, m keys, c channels)
  convolution   the same with F = 2 outputs x the kernel's elements of each
  copy          2 x bytes / bandwidth

B is what they read and write. Kernels are taken one after the other, without what it
takes to start them; a loop's body as often as it runs, of a choice's branches the
longest.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from launch.planning import collectives, hlo
from launch.planning.chips import UTILISATION, Chip

ATTENTION, CONVOLUTION, COPY = "cuDNN attention", "cuDNN convolution", "copy"
COLLECTIVE = "collective"
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<result>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)\("
)
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_COST = re.compile(r'"reification_cost":(\[.*?\])')
# What runs no kernel by itself; what it calls is counted on its own.
_NONE = """parameter constant tuple get-tuple-element bitcast while conditional call
after-all partition-id replica-id opt-barrier async-start async-update async-done
copy-done""".split()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Kernels of one kind in a step.

    Attributes:
      name: such as "cuBLAS product" or "loop fusion".
      count: how often they run.
      model_seconds: XLA's estimate, of all of them.
      own_seconds: ours, of those that XLA gives none.
      untimed: how many have neither.
    """

    name: str
    count: int
    model_seconds: float
    own_seconds: float
    untimed: int


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of a step.

    Attributes:
      kinds: those that take longest first.
      custom_calls: target, such as "__cudnn$fmhaSoftmax", -> how often it is called.
      copied: bytes of all copies.
      unknown_loops: loops whose length XLA does not tell: taken as run once.
    """

    kinds: tuple[Kind, ...]
    custom_calls: dict[str, int]
    copied: int
    unknown_loops: int

    @classmethod
    def from_dict(cls, fields: dict) -> Kernels:
        """Inverse of `dataclasses.asdict`, also by way of JSON."""
        kinds = tuple(Kind(**kind) for kind in fields["kinds"])
        return cls(**{**fields, "kinds": kinds})

    @property
    def model_seconds(self) -> float:
        """XLA's estimate of all that it has one for."""
        return sum(kind.model_seconds for kind in self.kinds)

    def own_seconds(self) -> dict[str, float]:
        """Ours by kind: cuDNN's kernels and copies."""
        return {kind.name: kind.own_seconds for kind in self.kinds if kind.own_seconds}

    @property
    def compute_seconds(self) -> float:
        """Both estimates together, without collectives."""
        return sum(
            kind.model_seconds + kind.own_seconds
            for kind in self.kinds
            if kind.name != COLLECTIVE
        )


@dataclasses.dataclass(frozen=True)
class Rates:
    """FLOPs of a chip and bytes of its memory, a second, for our estimates."""

    flops: float
    bandwidth: float

    def seconds(self, flops: float, size: float) -> float:
        return max(flops / self.flops, size / self.bandwidth)


def rates(chip: Chip) -> Rates:
    """Of a chip: half of its peak, all of its memory's bandwidth."""
    return Rates(UTILISATION * chip.peak_flops, chip.hbm_bandwidth)


def count(text: str, rates: Rates) -> Kernels:
    """The kernels of a module compiled for a GPU, from `compiled.as_text()`."""
    return _Counting(hlo.parse(text), rates).kernels()


@dataclasses.dataclass
class _Launch:
    """One kernel in the text."""

    kind: str
    target: str | None
    model: float | None
    own: float | None
    copied: float

    @property
    def seconds(self) -> float:
        return (self.model or 0.0) + (self.own or 0.0)


class _Counting:
    """Walks from the entry through all that launches kernels."""

    def __init__(self, module: hlo.Module, rates: Rates):
        self.module, self.rates = module, rates
        self.read: dict[str, tuple[list[_Launch], list[list[tuple[str, int]]]]] = {}
        self.unknown_loops = 0

    def kernels(self) -> Kernels:
        times: Counter[str] = Counter()
        self._add("", 1, times)
        kinds: dict[str, list] = {}
        targets: Counter[str] = Counter()
        copied = 0.0
        for name, n in times.items():
            for one in self._read(name)[0]:
                sums = kinds.setdefault(one.kind, [0, 0.0, 0.0, 0])
                untimed = one.model is None and one.own is None
                each = 1, one.model or 0.0, one.own or 0.0, int(untimed)
                sums[:] = [s + n * e for s, e in zip(sums, each, strict=True)]
                copied += n * one.copied
                if one.target:
                    targets[one.target] += n
        found = [Kind(name, *sums) for name, sums in kinds.items()]
        found.sort(key=lambda k: (-k.model_seconds - k.own_seconds, -k.count, k.name))
        calls = dict(sorted(targets.items()))
        return Kernels(tuple(found), calls, int(copied), self.unknown_loops)

    def _add(self, name: str, n: int, times: Counter[str]) -> None:
        times[name] += n
        for branches in self._read(name)[1]:
            called, rounds = max(branches, key=lambda b: self._seconds(b[0]))
            self._add(called, n * rounds, times)

    def _seconds(self, name: str) -> float:
        launches, calls = self._read(name)
        longest = (max(r * self._seconds(c) for c, r in each) for each in calls)
        return sum(one.seconds for one in launches) + sum(longest)

    def _read(self, name: str):
        """(launches, calls) of a computation; a call is [(one branch, rounds), ...]."""
        if name not in self.read:
            launches, calls, shapes = [], [], {}
            for line in self.module.computations[name]:
                match = _INSTRUCTION.match(line)
                if not match:
                    continue
                shapes[match["name"]] = match["result"]
                calls += self._calls(match["op"], line)
                if match["op"] not in _NONE and not match["op"].endswith("-done"):
                    launches.append(self._launch(match, line, shapes))
            self.read[name] = launches, calls
        return self.read[name]

    def _calls(self, op: str, line: str) -> Iterator[list[tuple[str, int]]]:
        if op not in ("while", "conditional", "call", "async-start"):
            return
        called, rounds = self.module.called(line), 1
        if op == "while":
            told = self.module.rounds(line)
            self.unknown_loops += told is None
            rounds = 1 if told is None else told
        if op == "conditional":
            yield [(name, 1) for name in called]
        else:
            yield from ([(name, rounds)] for name in called)

    def _launch(self, match: re.Match, line: str, shapes: dict[str, str]) -> _Launch:
        op, target = match["op"], _TARGET.search(line)
        target = target[1] if op == "custom-call" and target else None
        kind, own, copied = _kind(op, target, line), None, 0.0
        if kind.startswith(ATTENTION) or kind == CONVOLUTION:
            names = re.findall(r"%([\w.-]+)", line[match.end() :].split(")")[0])
            work = _convolution if kind == CONVOLUTION else _attention
            operands = [shapes[name] for name in names]
            own = self.rates.seconds(*work(match, line, target, operands))
        elif kind == COPY:
            # An asynchronous one gives its target, its source and a context.
            result = hlo.arrays(match["result"])
            copied = sum(bits for _, _, bits in result[: None if op == "copy" else 1])
            copied /= 8
            own = self.rates.seconds(0, 2 * copied)
        model = _model(line) if own is None else None
        return _Launch(kind, target, model, own, copied)


def _kind(op: str, target: str | None, line: str) -> str:
    if target is not None:
        if target.startswith("__cublas"):
            return "cuBLAS product"
        if target.startswith("__cudnn$fmha"):
            return f"{ATTENTION}, {'back' if 'Backward' in target else 'for'}ward"
        return CONVOLUTION if target.startswith("__cudnn$conv") else target
    if op == "fusion":
        if '"kind":"__triton' in line:
            return "Triton fusion"
        kinds = {"kInput": "reduction fusion", "kLoop": "loop fusion"}
        return kinds.get(re.search(r"kind=(k\w+)", line)[1], "other fusion")
    if op in ("copy", "copy-start"):
        return COPY
    return COLLECTIVE if op.removesuffix("-start") in collectives.KINDS else op


def _model(line: str) -> float | None:
    """XLA's estimate in seconds: of Triton's fusions by its model of their indexing."""
    found = _COST.search(line)
    each = json.loads(found[1]) if found else []
    costs = {cost["name"]: cost.get("exec_time_us", 0.0) for cost in each}
    names = ["sol"]
    if '"kind":"__triton' in line:
        names.insert(0, "indexing-cost-model")
    return next((1e-6 * float(costs[name]) for name in names if name in costs), None)


def _attention(
    match: re.Match, line: str, target: str, operands: list[str]
) -> tuple[float, float]:
    """(FLOPs, bytes) of cuDNN's attention, from its operands and its scores' shape."""
    scores = re.search(r'"intermediate_tensor_shape":.*?"dimensions": ?\[(.*?)\]', line)
    size = math.prod(int(n) for n in re.findall(r"\d+", scores[1]))
    channels = hlo.arrays(operands[0])[0][1][-1]
    products = 5 if "Backward" in target else 2
    moved = sum(map(_bytes, [*operands, match["result"]]))
    return 2 * products * size * channels, moved


def _convolution(
    match: re.Match, line: str, target: str, operands: list[str]
) -> tuple[float, float]:
    """(FLOPs, bytes) of one of cuDNN's convolutions, a gradient or not."""
    kernel, outputs = operands[1], match["result"]
    if "BackwardFilter" in target:
        kernel, outputs = match["result"], operands[1]
    elif "BackwardInput" in target:
        outputs = operands[0]
    labels = re.search(r"dim_labels=\w+_(\w+)->", line)[1]
    weights = hlo.arrays(kernel)[0][1]
    each = math.prod(weights) / weights[labels.index("o")]
    flops = 2 * math.prod(hlo.arrays(outputs)[0][1]) * each
    return flops, sum(map(_bytes, [*operands, match["result"]]))


def _bytes(shape: str) -> float:
    """Of all arrays but a workspace's, which are of u8."""
    return sum(bits for dtype, _, bits in hlo.arrays(shape) if dtype != "u8") / 8
