"""`pacx`, installed from a wheel, in a folder where nothing else is."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest

from pacx_jax import commands, fit_probe

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = "import sys; from pacx_jax.commands import main; sys.exit(main())"
# Several commands, an argument each: JAX is imported once.
RUN_ALL = """import sys; from pacx_jax.commands import main
sys.exit(max(main(line.split()) for line in sys.argv[1:]))"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The content of the wheel that this clone makes."""
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index"]
    where = root / "clone"
    where.mkdir()
    for name in ("setup.py", "README.md", "LICENSE", "pyproject.toml", "pacx_jax",
                 "configs", "data", "launch"):  # fmt: skip
        (where / name).symlink_to(ROOT / name)
    command = [*pip, "--no-build-isolation", f"--wheel-dir={root}", str(where)]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = root.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


@pytest.fixture
def pacx(site, tmp_path):
    """(arguments) -> exit code, stdout, stderr."""
    (tmp_path / "here").mkdir()

    def call(*arguments, code=RUN):
        environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=tmp_path / "here", env=environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return call


def test_the_wheel_has_recipes_and_no_package_of_a_common_name(site):
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top == {"pacx_jax"}
    for name in (
        "configs/finetune.py",
        "data/cohort/generate.py",
        "launch/table3.json",
    ):
        assert (site / "pacx_jax" / "_clone" / name).is_file(), name
    (info,) = site.glob("*.dist-info")
    assert "pacx = pacx_jax.commands:main" in (info / "entry_points.txt").read_text()


def test_the_wheel_has_every_file_that_is_no_code(site):
    found = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "pacx_jax").rglob("*")
        if p.is_file()
        and p.suffix != ".py"
        and "__pycache__" not in p.parts
        and not p.name.startswith(".")
    }
    assert {
        "pacx_jax/py.typed",
        "pacx_jax/encoders/golden_films.png",
        "pacx_jax/evaluate/reports/run.html.j2",
        "pacx_jax/exporting/page/index.html",
        "pacx_jax/serving/pages/upload.html",
    } <= found
    missing = [name for name in found if not (site / name).is_file()]
    assert not missing, "name them in setup.py: package_data"


def test_the_core_installs_these_packages_and_no_others(site):
    (info,) = site.glob("*.dist-info")
    asked = importlib.metadata.PathDistribution(info).requires
    core = [line for line in asked if "extra ==" not in line]
    assert {re.match(r"[\w.-]+", line)[0] for line in core} == {
        "absl-py", "array-record", "cloudpickle", "einops", "flax", "grain",
        "importlib-resources", "jax", "ml-collections", "numpy",
        "opencv-python-headless", "optax", "orbax-checkpoint", "pillow", "safetensors",
        "scikit-learn", "scipy", "tensorboardX", "tensorflow-datasets", "tokenizers",
        "tqdm",
    }  # fmt: skip
    web, onnx = (
        {line.partition(";")[0] for line in asked if f'extra == "{name}"' in line}
        for name in ("web", "onnx")
    )
    assert web == onnx and web


def test_commands_of_the_wheel_find_their_recipes_and_builders(pacx):
    code, out, _ = pacx("--help")
    assert code == 0 and "mae_vitb16" in out
    assert all(f"  {name}" in out for name in commands.PROGRAMS)
    code, out, said = pacx("train", "--config=labs_dae:runlocal", "--workdir=x")
    assert (code, said) == (2, "error: runs/demo/data/prepared/symile_mimic: no such "
                               "folder; check data.path\n")  # fmt: skip
    code, out, said = pacx("prepare", "folder", "--source=no", "--target=y")
    assert code == 2 and said.startswith("error: no: no such folder")


def test_a_job_of_the_wheel_runs_to_its_end_in_another_folder(pacx, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    for i in range(8):
        grey = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        PIL.Image.fromarray(grey).save(tmp_path / f"films/{i}.png")
    films = "../films"  # from the folder "here"
    small = {"data.source": "folder", "data.path": films, "data.simulated": False,
             "data.val_fraction": 0.5, "data.image_size": 32, "data.threads": 1,
             "model.variant": "mu", "model.decoder.width": 16, "model.decoder.depth": 1,
             "num_devices": 1, "global_batch_size": 4, "total_steps": 3,
             "eval_every": 3, "save_every": 3, "images_every": 0,
             "optim.warmup_steps": 1}  # fmt: skip
    fields = [f"--config.{k}={v}" for k, v in small.items()]
    code, out, said = pacx(
        "train", "--config=mae_vitb16:runlocal", "--workdir=run", "--quiet", *fields
    )
    assert code == 0, said
    assert not out
    done = json.loads((tmp_path / "here/run/done.json").read_text())
    assert done["step"] == 3 and np.isfinite(done["metrics"]["val/loss"])
    code, _, said = pacx("embed", "--encoder=run", f"--images={films}", "--out=z.npz")
    assert code == 0, said
    with np.load(tmp_path / "here/z.npz") as found:
        assert found["embedding"].shape == (8, 32)
    here = tmp_path / "here"
    files = sorted((tmp_path / "films").iterdir())
    fit_probe(here / "run", files, np.arange(8) % 2).save(here / "model")
    written = {
        "evaluate --workdir=run --split=val": "run/evaluation_val.json",
        "report --workdir=run": "report.html",
        "export --workdir=run --out=export": "export/model.safetensors",
        f"predict --model=model --images={films} --out=p.csv": "p.csv",
    }
    code, _, said = pacx(*written, code=RUN_ALL)
    assert code == 0, said
    assert all((here / file).is_file() for file in written.values())


@pytest.mark.parametrize("name", ["evaluate", "train"])
def test_help_of_a_command_begins_with_an_example(name, pacx):
    code, out, _ = pacx(name, "--help")
    assert code == 0 and commands.PROGRAMS[name].example in out
    assert "--workdir" in out.replace(commands.PROGRAMS[name].example, "")


@pytest.mark.parametrize("name", commands.PROGRAMS)
def test_help_of_every_command_has_its_example(name, monkeypatch, capsys):
    """tests/launch/test_pages.py has the program take the example."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "")
    with pytest.raises(SystemExit) as end:
        sys.exit(commands.main([name, "--help"]))
    said = capsys.readouterr()
    assert end.value.code in (0, None), said.err
    program = commands.PROGRAMS[name]
    assert program.example.startswith(f"pacx {name} ")
    assert said.out.startswith(f"{name}: {program.does}\n\n  {program.example}\n")
    assert "--" in said.out.replace(program.example, "")


def test_another_name_is_answered_with_the_nearest_one(monkeypatch, capsys):
    for given, told in (
        (["trian"], "pacx trian: no such command: did you mean train?"),
        (["fintune"], "pacx fintune: no such command: did you mean pacx train "
                      "--config=finetune?"),
        (["finetune:a"], "finetune:a is a recipe: pacx train --config=finetune:a"),
        (["zzz"], "pacx zzz: no such command: have train, evaluate"),
    ):  # fmt: skip
        assert commands.main(given) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.delitem(sys.modules, "launch.demo", raising=False)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert commands.main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "needs the package psutil: run pip install -e '.[demo]'" in said
    assert commands.main(["--version"]) == 0
    assert commands.main([]) == 0
    assert "COMMAND --help" in capsys.readouterr().out
