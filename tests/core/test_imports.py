"""Imports run one way (style.md), read from the source with ast."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pacx_jax"

# Rooms (packages) and flat modules -> floor. Lower floors may not import higher ones.
# Those of one floor may import each other, but never in a circle.
FLOORS = {
    "errors": 0,
    "types": 0,
    "distributed": 0,
    "target": 1,
    "files": 1,
    "stores": 1,
    "sharding": 1,
    "cli": 2,
    "losses": 2,
    "models": 3,
    "lora": 4,
    "encoders": 4,
    "modalities": 5,
    "objectives": 6,
    "step": 7,
    "optim": 7,
    "run": 8,
    "loop": 9,
    "evaluate": 10,
}
# The input room stands beside them, on these alone.
LEAVES = ("input",)
BELOW_INPUT = {"errors", "types", "files", "sharding", "stores"}
# Entry points read everything; nothing but main, the package and the demo's
# drivers imports them.
ENTRY = (
    "__main__ main training recipes commands export exporting embed convert serving"
).split()


def part(name: str) -> str:
    return name.split(".")[0]


def imports(path: pathlib.Path, inside_functions: bool = True) -> set[str]:
    """Absolute names of what a file imports, at any depth of its code by default."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: pathlib.Path) -> set[str]:
    """Parts of pacx_jax (modules or subpackages) that a file imports."""
    found = set()
    for name in imports(path):
        if name == "pacx_jax" or name.startswith("pacx_jax."):
            rest = name.removeprefix("pacx_jax").lstrip(".")
            found.add(part(rest))
    return found


FILES = {
    path: path.relative_to(PACKAGE).with_suffix("").parts[0]
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def name(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert {"types", "losses", "step", "loop", "input"} <= set(FILES.values())
    known = {*FLOORS, *LEAVES, *ENTRY}
    assert set(FILES.values()) <= known, "give the new module its floor here"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_library_imports_neither_configs_nor_data_nor_launchers_nor_tests(path):
    outside = {part(n) for n in imports(path)} & {"configs", "data", "launch", "tests"}
    assert not outside


@pytest.mark.parametrize(
    "path", [p for p, unit in FILES.items() if unit in FLOORS], ids=name
)
def test_rooms_import_downwards_alone(path):
    unit = FILES[path]
    for other in own(path) - {unit, "", *LEAVES}:
        assert other in FLOORS, f"{unit} imports the entry point {other}"
        assert FLOORS[other] <= FLOORS[unit], f"{unit} imports {other}, above it"


@pytest.mark.parametrize(
    "path", [p for p, unit in FILES.items() if unit in LEAVES], ids=name
)
def test_input_imports_what_stands_below_it_alone(path):
    assert own(path) <= {FILES[path], *BELOW_INPUT}


@pytest.mark.parametrize(
    "path", [p for p, unit in FILES.items() if FLOORS.get(unit, 9) < 4], ids=name
)
def test_lowest_floors_do_not_read_data(path):
    assert not own(path) & {*LEAVES, "encoders"}


def test_no_two_parts_import_each_other():
    graph = {}
    for path, unit in FILES.items():
        graph.setdefault(unit, set()).update(own(path) - {unit, ""})

    def reachable(start):
        seen, todo = set(), [*graph[start]]
        while todo:
            unit = todo.pop()
            if unit not in seen:
                seen.add(unit)
                todo += graph.get(unit, ())
        return seen

    assert not [unit for unit in graph if unit in reachable(unit)]


def test_data_builders_import_nothing_of_the_library_but_input_and_modalities():
    files = (
        [p for p in (ROOT / "data").rglob("*.py")] if (ROOT / "data").exists() else []
    )
    for path in files:
        assert own(path) <= {"input", "modalities", "cli", *BELOW_INPUT}, name(path)


def test_reports_and_what_they_are_drawn_with_stay_out_of_the_library():
    reports = PACKAGE / "evaluate" / "reports"
    for path in FILES:
        if reports not in path.parents:
            found = imports(path)
            assert not {part(n) for n in found} & {"matplotlib", "jinja2"}, name(path)
            assert not any(n.startswith("pacx_jax.evaluate.reports") for n in found)


def test_library_does_not_import_torch_or_tensorflow():
    for path, unit in FILES.items():
        if unit == "convert":
            continue
        # Exports are opened again in other libraries, which only then are imported.
        heavy = {part(n) for n in imports(path, unit != "exporting")} & {
            "torch",
            "tensorflow",
            "timm",
            "transformers",
            "onnx",
            "onnxruntime",
            "jax2onnx",
        }
        assert not heavy, name(path)


def test_library_imports_no_private_part_of_jax():
    private = "jax._src"
    for path in FILES:
        assert not [n for n in imports(path) if n.startswith(private)], name(path)


def test_library_runs_where_torch_is_missing():
    # Where it is installed, tensorboardX and others import it by themselves.
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("no torch here")
sys.meta_path.insert(0, NoTorch())
import pacx_jax.embed, pacx_jax.evaluate.probe, pacx_jax.export, pacx_jax.main
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
