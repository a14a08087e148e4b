"""How every array of every recipe lies on meshes, pinned; every jit states it."""

import ast
import json
import pathlib

import pytest

import pacx_jax
from tests import stages
from tests.core import record_shardings

ROOT = pathlib.Path(pacx_jax.__file__).parent
JITS = {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text("utf-8"))
        for p in sorted(ROOT.rglob("*.py"))}  # fmt: skip


@pytest.mark.parametrize("stage", stages.STAGES)
def test_arrays_lie_as_recorded(stage, stage_folders):
    # After a change that is meant: python -m tests.core.record_shardings
    want = json.loads(record_shardings.GOLDEN.read_text())[stage]
    assert record_shardings.found(stage, stage_folders) == want


def is_jit(node) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.jit"


def test_every_jit_that_runs_on_a_mesh_states_its_shardings():
    # Exported graphs are for one device of somebody else's.
    found = {}
    for name, tree in JITS.items():
        if name.startswith("exporting/"):
            continue
        jits = [n for n in ast.walk(tree) if is_jit(n)]
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        stated = 0
        for call in calls:
            keywords = {k.arg for k in call.keywords}
            spread = [ast.unparse(k.value) for k in call.keywords if k.arg is None]
            if any(map(is_jit, (call.func, *call.args))):
                stated += {"in_shardings", "out_shardings"} <= keywords
                stated += spread == ["shardings"]
        if jits:
            found[name] = (len(jits), stated)
    assert len(found) >= 6
    assert {k for k, (n, stated) in found.items() if n != stated} == set()
