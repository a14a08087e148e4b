"""Records how every array of every recipe lies on meshes, for test_shardings.py.

python -m tests.core.record_shardings     after a change of rules or parameters
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import tempfile

import tests.conftest  # noqa: F401  the same devices as in the tests

GOLDEN = pathlib.Path(__file__).parent / "shardings.json"
# (devices, fsdp, tensor); the first is that of no setting at all
MESHES = ((8, 1, 1), (8, 4, 1), (8, 2, 2))


def found(stage: str, folders: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Mesh -> spec -> paths of the train state's and the batch's arrays.

    Blocks are all alike, so that a path has NN for a block's number. What is replicated
    is told by "..." alone.
    """
    import jax

    from pacx_jax import objectives, optim, sharding, step
    from tests import stages

    config = stages.config(stage, folders)
    table = {}
    for devices, fsdp, tensor in MESHES:
        mesh = sharding.make_mesh(devices, fsdp, tensor)
        objective = objectives.make(config, mesh)
        tx = optim.make(config.optim, config.total_steps)
        state = jax.eval_shape(
            lambda key, o=objective, tx=tx: step.make_state(o.init(key), o, tx),
            jax.random.key(0),
        )
        arrays = {"batch": {k: sharding.batch_sharding(mesh)
                            for k in stages.batch(stage)}}  # fmt: skip
        arrays = jax.tree.leaves_with_path(arrays)
        arrays += jax.tree.leaves_with_path(sharding.tree_shardings(state, mesh))
        specs = {}
        for path, s in arrays:
            name = re.sub(r"block_\d+", "block_NN", sharding.path_name(path))
            specs.setdefault(name, set()).add(str(tuple(s.spec)))
        rows = {}
        for name, each in sorted(specs.items()):
            assert len(each) == 1, f"blocks differ in {name}: {each}"
            (spec,) = each
            split = spec != "()"
            rows.setdefault(spec, set()).add(name if split else "...")
        rows = {spec: sorted(names) for spec, names in sorted(rows.items())}
        table[f"data={mesh.shape['data']} fsdp={fsdp} tensor={tensor}"] = rows
    return table


def main() -> None:
    from tests import stages, tiny

    with tempfile.TemporaryDirectory() as scratch:
        folders = tiny.write_folders(pathlib.Path(scratch))
        table = {stage: found(stage, folders) for stage in stages.STAGES}
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n")
    print(GOLDEN, file=sys.stderr)


if __name__ == "__main__":
    main()
