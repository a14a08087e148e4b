"""Records what test_golden.py compares with: traces of every stage, an old workdir.

python -m tests.reliability.record traces     after a change that is meant to change
                                              numbers; one file, for all versions of jax
python -m tests.reliability.record workdir N  for a new format N of checkpoints
"""

import json
import pathlib
import shutil
import sys
import tempfile

import tests.conftest  # noqa: F401  the same devices and flags as in the tests

GOLDEN = pathlib.Path(__file__).parent / "golden"
TRACES = GOLDEN / "traces.json"


def losses(workdir: pathlib.Path) -> list[float]:
    """The loss of each step, as logged."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def main() -> None:
    from pacx_jax import main
    from tests import stages, tiny
    from tests.reliability import runs

    runs.use_patients()
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        if sys.argv[1] == "workdir":
            config = runs.config("labs_dae", {}, num_devices=1, keep=1, best="")
            main.run(config, str(root / "run"))
            target = GOLDEN / f"workdir_{sys.argv[2]}"
            target.mkdir()
            shutil.copytree(root / "run" / "checkpoints", target / "checkpoints")
            for name in ("config.json", "metrics.jsonl"):
                shutil.copy(root / "run" / name, target)
            return
        folders = tiny.write_folders(root)
        found = {}
        for stage in stages.STAGES:
            config = runs.config(stage, folders, num_devices=2)
            main.run(config, str(root / "runs" / stage))
            found[stage] = losses(root / "runs" / stage)
    TRACES.write_text(json.dumps(found, indent=1) + "\n")
    print(TRACES)


if __name__ == "__main__":
    main()
