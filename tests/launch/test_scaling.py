"""docs/scaling.md: what its tables say, and that the predictions are today's code's.

Its tables take hours of libtpu and are read here. What is compiled for them stands in
them as rounded numbers; what `launch/planning/predict.py` makes of these numbers must
be what stands there too.
"""

import dataclasses
import decimal
import functools
import importlib
import itertools
import pathlib
import re

import jax
import ml_collections
import pytest

from launch.planning import (
    abstract,
    chips,
    plan,
    predict,
    report,
)
from launch.planning.predict import Collective
from tests import tiny

DOC = pathlib.Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
LEAST = 0.95  # of the predicted efficiency, up to so many chips:
CHIPS = 1024
PARALLEL = ("mae_vitb16", "distill_vitb16")


@dataclasses.dataclass(frozen=True)
class Section:
    """A recipe's tables on one topology.

    Attributes:
      costs: what the first table says, by the name of its row.
      collectives: the second table.
      curve: the cells of each row of the last, without the bold face of its own.
    """

    recipe: str
    topology: chips.Topology
    costs: dict[str, str]
    collectives: tuple[Collective, ...]
    curve: list[list[str]]

    @property
    def gathered(self) -> int:
        """Bytes a chip; see `predict.Costs`."""
        return int(number(self.costs.get("gathers and their gradients a chip", "0")))


def sections(text: str) -> dict[tuple[str, str], Section]:
    """(recipe, topology) -> its tables."""
    body = text[text.index(report.BEGIN) : text.index(report.END)]
    found = {}
    for part in body.split("\n## ")[1:]:
        recipe, name = part.splitlines()[0].split(" on ")
        found[recipe, name] = section(recipe, name, part.splitlines())
    return found


def section(recipe: str, name: str, lines: list[str]) -> Section:
    """What the lines of `report.lines` say."""
    found: dict[str, list[list[str]]] = {}
    rows = None
    for line in lines:
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            rows = None
        elif rows is None:
            rows = found.setdefault(cells[0].split(" (")[0], [])
        elif not line.startswith("|-"):
            rows.append(cells)
    collectives = (
        Collective(kind, *(int(n.replace(",", "")) for n in numbers[:3]))
        for kind, *numbers in found.get("collective", [])
    )
    return Section(
        recipe,
        chips.parse(name),
        {row[0]: row[1] for row in found[""]},
        tuple(collectives),
        found["topology"],
    )


SECTIONS = sections(DOC.read_text(encoding="utf-8"))
TABLES = [
    pytest.param(s, id=f"{s.recipe} {s.topology.name}") for s in SECTIONS.values()
]
PODS = [
    pytest.param(s, id=f"{s.recipe} {s.topology.name}")
    for s in SECTIONS.values()
    if s.recipe in PARALLEL and s.topology.is_tpu
]


def number(text: str) -> float:
    """The first number of a cell."""
    return float(re.search(r"\d[\d.,]*(e[+-]\d+)?", text)[0].replace(",", ""))


def rounded(text: str, digits: int) -> tuple[float, float]:
    """Between what the first number of a cell was, before so many digits were kept."""
    value = decimal.Decimal(repr(number(text)))
    half = decimal.Decimal(5).scaleb(value.adjusted() - digits) if value else 0
    return float(value - half), float(value + half)


def seconds(text: str) -> tuple[float, float]:
    """The same of a time, as `report` writes it."""
    unit = 1e-3 if text.endswith("ms") else 1.0
    low, high = rounded(text, 3)
    return low * unit, high * unit


def percent(text: str, digits: int) -> tuple[float, float]:
    """The same of a share of 1, with so many digits after the point."""
    value, half = float(re.search(r"([\d.]+)%", text)[1]), 0.5 * 10**-digits
    return (value - half) / 100, (value + half) / 100


def rate(section: Section) -> float:
    """FLOP/s that are assumed."""
    return chips.UTILISATION * section.topology.chip.peak_flops


def growth(section: Section, flops: tuple[float, float]) -> tuple[float, float]:
    """FLOPs a chip that each further chip adds, as the curve's column "compute" has it.

    Args:
      flops: that take as long as the step's compute, on the topology itself, of which
        another table has more digits.
    """
    low, high = 0.0, float("inf")
    for row in section.curve:
        more = int(row[1]) - section.topology.devices
        least, most = (rate(section) * s for s in seconds(row[3]))
        if not more:
            assert least <= flops[1] and flops[0] <= most, row
            continue
        bounds = (least - flops[1]) / more, (most - flops[0]) / more
        if more < 0:
            bounds = (most - flops[0]) / more, (least - flops[1]) / more
        low, high = max(low, bounds[0]), min(high, bounds[1])
    assert low <= high, "the curve's compute is no line through the step's FLOPs"
    return low, high


def possible(section: Section) -> list[predict.Costs]:
    """Costs that would be written as this table's: the ends of what was rounded."""
    n = section.topology.devices
    low, high = rounded(section.costs["FLOPs a step"], 4)
    flops = low / n, high / n
    kernels = (0.0, 0.0)
    if "kernels" in section.costs:  # of a GPU's, which compute is then
        kernels = seconds(section.costs["kernels"])
        flops = tuple(rate(section) * s for s in kernels)
    backward = percent(section.costs["FLOPs a step"].split("backward")[1], 0)
    return [
        predict.Costs(
            section.topology,
            own,
            ((0, 0.0), (1, each)),
            share,
            0.0,
            section.collectives,
            section.gathered,
            took,
        )
        for (own, took), each, share in itertools.product(
            zip(flops, kernels, strict=True), growth(section, flops), backward
        )
    ]


def agree(written: tuple[float, float], predicted) -> bool:
    """Whether one of the values that are predicted would be written so."""
    slack = 1e-9 * max(abs(written[1]), 1e-9)
    return written[0] <= max(predicted) + slack and min(predicted) - slack <= written[1]


@pytest.mark.parametrize("section", TABLES)
def test_a_table_s_predictions_are_what_the_code_makes_of_its_figures(section):
    check(section)


def check(section: Section) -> None:
    curves = [predict.curve(costs) for costs in possible(section)]
    assert len(section.curve) == len(curves[0])
    for row, points in zip(section.curve, zip(*curves, strict=True), strict=True):
        name, n, batch, _, moved, waited, efficiency, no_overlap = row
        point = points[0]
        assert (name, int(n)) == (point.topology.name, point.topology.devices)
        here = number(section.costs["global batch"]) / section.topology.devices
        assert number(batch) == here * int(n)
        # Bytes are written whole: the time on links is the same to its last digit.
        assert moved == report._ms(point.reduction + point.other), row
        assert agree(seconds(waited), [p.step - p.compute for p in points]), row
        for text, values in (
            (efficiency, [p.efficiency for p in points]),
            (no_overlap, [p.no_overlap for p in points]),
        ):
            # What rounding leaves open. Measured 0.34 percentage points at most: of
            # compute, and so of how it grows, the table has three digits.
            assert max(values) - min(values) < 0.02, row
            assert agree(percent(text, 1), values), (row, values)
        if name == section.topology.name:
            assert section.costs["predicted efficiency"] == efficiency
            assert section.costs["- without overlap"] == no_overlap


def test_a_gpu_s_tables_are_read_and_predicted_likewise():
    topology = chips.parse("gpu:16xH100")
    kinds = ("cuBLAS product", 368, 0.0449, 0.0), ("collective", 9, 0.00156, 0.0)
    kinds += (("copy", 774, 0.0, 0.00129),)
    names = "name", "count", "model_seconds", "own_seconds", "untimed"
    sent = Collective("all-reduce", 16, 9, 223_424_516, {"bf16": 223_424_516})
    step = {
        "flops": 1.12e13,
        "traffic": 0.0,
        "counted": ((8, 1.10e13), (16, 1.12e13)),
        "backward": 0.6667,
        "gathered": 0,
        "collectives": [dataclasses.asdict(sent)],
        "tried": [(256, 11 * 10**9 + 10, True)],
        "mesh": {"data": 16, "fsdp": 1, "tensor": 1},
        "kernels": {
            "kernels": [dict(zip(names, (*k, 0), strict=True)) for k in kinds],
            "custom_calls": {"__cublas$lt$matmul": 368},
            "compute_seconds": 0.0449 + 0.00129,
            "unknown_loops": 0,
        },
    }
    step |= {"arguments": 10**9, "temporaries": 10**10, "outputs": 10, "code": 0}
    step["peak"] = 11 * 10**9 + 10
    config = ml_collections.ConfigDict({"name": "mae", "global_batch_size": 16 * 256})
    lines = report.lines(*plan.summarize(config, topology, step, simulated=False))
    written = section("mae", "gpu:16xH100", lines)
    assert written.costs["kernels"] == "46.2 ms"
    (read,) = written.collectives
    assert (read.kind, read.group, read.count) == ("all-reduce", 16, 9)
    assert len(written.curve) == 8
    check(written)


def test_the_recipes_have_tables_for_256_and_1024_chips():
    for recipe in PARALLEL:
        pods = {s.topology.devices for (r, _), s in SECTIONS.items() if r == recipe}
        assert {256, 1024} <= pods
        assert (recipe, "v5p:8x8x16") in SECTIONS and (recipe, "v5e:16x16") in SECTIONS


@pytest.mark.parametrize("section", PODS)
def test_weak_scaling_is_predicted_to_be_95_percent_up_to_1024_chips(section):
    upto = [row for row in section.curve if int(row[1]) <= CHIPS]
    assert any(int(row[1]) == section.topology.devices for row in upto)
    for row in [*upto, [section.costs["predicted efficiency"]] * 8]:
        assert number(row[6]) / 100 >= LEAST, row


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Recipe -> how many parameters it trains."""

    @functools.cache
    def count(recipe):
        config = importlib.import_module(f"configs.{recipe}").get_config()
        folder = str(tmp_path_factory.mktemp(recipe))
        completed = abstract.completed(abstract.resized(config, 64), folder)
        return tiny.count(abstract.train_step(completed, jax.devices()).args[0].params)

    return count


@pytest.mark.parametrize("section", PODS)
def test_pods_move_gradients_and_contrastive_embeddings_alone(section, trained):
    config = importlib.import_module(f"configs.{section.recipe}").get_config()
    assert {c.group for c in section.collectives} == {section.topology.devices}
    # Of each gradient once, 4 bytes, or 2 where XLA for TPUs adds up bfloat16; and
    # scalars.
    count = trained(section.recipe)
    gradients = 2 * count, 4 * count + 64
    total = sum(c.bytes_per_chip for c in section.collectives)
    kinds = {c.kind for c in section.collectives}
    if config.objective == "mae":
        assert kinds == {"all-reduce"}
        assert gradients[0] <= total <= gradients[1]
        return
    # Of the X-rays' embeddings and back of their gradients, float32, and some numbers a
    # row; for TPUs these are all-reduces too.
    assert kinds <= {"all-reduce", "all-gather", "reduce-scatter"}
    rows = number(section.costs["global batch"])
    embeddings = 2 * rows * config.heads.shared_dim * 4
    assert embeddings <= section.gathered <= embeddings + 10 * 4 * rows
    assert gradients[0] <= total - section.gathered <= gradients[1] + 10 * 4 * rows
