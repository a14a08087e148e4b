"""What is passed on holds no patient, no folder of this machine and no secret."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest

from pacx_jax import embed, objectives
from pacx_jax.convert import __main__ as convert
from pacx_jax.convert import files, kinds
from pacx_jax.encoders import model_folder
from pacx_jax.exporting import source, write
from pacx_jax.input import images
from pacx_jax.run import checkpoint, finished, metrics, overlap
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENT = "p19876543"
SOURCES = [
    path
    for folder in ("pacx_jax", "data", "launch", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def everything_in(folder: pathlib.Path) -> bytes:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert files
    return b"\n".join(
        str(p.relative_to(folder)).encode() + p.read_bytes() for p in files
    )


def assert_private(folder: pathlib.Path, *more: str) -> None:
    held = everything_in(folder)
    home = pathlib.Path.home()
    folders = [str(ROOT), *([str(home)] if len(home.parts) > 1 else [])]
    for secret in (PATIENT, *folders, *more):
        assert secret.encode() not in held, secret


class Patients:
    """A split of one patient."""

    fingerprint, namespace, split = "f", "mimic", "train"

    def patients(self):
        return [PATIENT]


def test_exported_run_and_its_card_name_no_patient_and_no_folder(
    tmp_path, meshes, monkeypatch
):
    work = tmp_path / PATIENT / "run"
    config = tiny.config("mae_vitb16", data__path=str(tmp_path / PATIENT))
    config.model.update(variant="mu", patch_size=8)
    config.data.image_size = 32
    overlap.account(config, str(work), Patients())
    params = tiny.random_start(objectives.make(config, meshes[1]))
    monkeypatch.setattr(checkpoint, "read_params", lambda *args: params)
    metrics.MetricsWriter(work, 0).close()
    out = tmp_path / "out"
    finished.from_workdir(config, str(work), str(out), "latest", heads=True)
    key = (work / overlap.KEY).read_text().strip()
    assert_private(out, str(tmp_path), key)
    # The list of patients holds them hashed, and the workdir's name as it was given.
    assert f'"{PATIENT}"' not in (work / overlap.PATIENTS).read_text()


@pytest.mark.parametrize("name", ["safetensors", "stablehlo"])
def test_exported_formats_name_no_folder_of_this_machine(name, tmp_path):
    for package in write.FORMATS[name].packages:
        pytest.importorskip(package)
    write.export(
        source.Source(tiny.folder("vit"), None, "card"),
        name,
        tmp_path / "out",
        [np.zeros((32, 32), np.uint8)],
    )
    assert_private(
        tmp_path / "out", str(tmp_path), str(pathlib.Path(jax.__file__).parent)
    )


def test_converted_folder_names_its_checkpoint_without_its_folder(tmp_path):
    path = tmp_path / PATIENT / "weights.safetensors"
    files.write(path, kinds.write("vit_timm", tiny.folder("vit")), "")
    target = tmp_path / "out"
    flags = ["--kind=vit_timm", f"--source={path}", f"--target={target}"]
    assert convert.main([*flags, "--num_heads=2"]) == 0
    assert b"weights.safetensors" in everything_in(target)
    assert_private(target, str(tmp_path))


def test_embeddings_name_images_by_their_path_within_the_folder(tmp_path):
    (tmp_path / "films/a").mkdir(parents=True)
    (tmp_path / "films/a/1.png").write_bytes(images.encode_png(np.eye(32, dtype="u1")))
    model_folder.save(tmp_path / "encoder", tiny.folder("vit"), "card")
    out = tmp_path / "out" / "z.npz"
    flags = [f"--encoder={tmp_path}/encoder", f"--images={tmp_path}/films"]
    assert embed.main([*flags, f"--out={out}", "--batch_size=8"]) == 0
    with np.load(out) as found:
        assert found["path"].tolist() == ["a/1.png"]
        assert set(found) == {"path", "embedding"}
    assert_private(out.parent, str(tmp_path))


SAYS = re.compile(r"(print|PacxError|json\.dumps?|logging\.\w+|\w*\.write(_text)?)$")
UNSAFE = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_no_environment_value_is_printed_logged_or_written():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and SAYS.match(ast.unparse(node.func)):
                said = ast.unparse(node)
                assert "environ" not in said and "getenv" not in said, f"{path}: {said}"


def forbidden(path: pathlib.Path) -> list[str]:
    """Calls and imports by which data could become code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        found += [m for m in modules if m.split(".")[0] in UNSAFE]
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if call in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
            found.append(call)
        if given.get("shell", "False") != "False":
            found.append(f"{call}(shell=)")
        if given.get("allow_pickle", "False") != "False":
            found.append(f"{call}(allow_pickle=)")
        if call == "np.load" and given.get("allow_pickle") != "False":
            found.append("np.load without allow_pickle=False")
        if call.endswith("torch.load") and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if call.startswith("yaml.") and ".safe_" not in call:
            found.append(call)
        if call.endswith(("loadmat", "extractall", "mktemp")):
            found.append(call)
    return found


def test_no_data_can_become_code():
    assert len(SOURCES) > 100
    found = {str(p.relative_to(ROOT)): forbidden(p) for p in SOURCES}
    # Between a process and the child that it has started, through a pipe: no file.
    own = {"pacx_jax/input/workers.py": ["cloudpickle"]}
    own |= {"launch/planning/compilers.py": ["pickle"]}
    # Packages that its user carries to a machine, in order to run them.
    own["launch/gpu_check.py"] = ["zipfile.ZipFile(wheel).extractall"]
    assert {k: v for k, v in found.items() if v} == own


def test_the_search_for_such_calls_finds_them(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\nyaml.load(x)\nnp.load(x)\nnp.load(x, allow_pickle=True)\n"
        "torch.load(x)\neval(x)\nsubprocess.run(x, shell=True)\n"
    )
    assert len(forbidden(path)) == 8  # allow_pickle=True counts twice
    path.write_text("np.load(x, allow_pickle=False)\nmodel.eval()\nyaml.safe_load(x)")
    assert not forbidden(path)


def test_lock_has_a_hash_for_everything_and_an_exact_version():
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line.strip()]
    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"[A-Za-z0-9_.-]+(\[[\w,-]+\])?==[^\s;]+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}(\s|$)", entry), entry
        assert "://" not in entry and "--index" not in entry
    locked = {
        re.split(r"[=\[]", entry)[0].lower().replace("_", "-") for entry in entries
    }
    setup = (ROOT / "setup.py").read_text()
    needed = re.findall(r'^ {8}"([\w-]+)[^":]*",', setup, re.MULTILINE)
    needed += re.findall(r'^ {12}"([\w-]+)[^":]*",', setup, re.MULTILINE)
    assert len(needed) > 20
    assert not {n.lower().replace("_", "-") for n in needed} - locked


def test_launchers_install_the_lock_by_its_hashes_and_nothing_else():
    scripts = sorted((ROOT / "launch").glob("*.sh"))
    assert len(scripts) >= 3
    for script in scripts:
        text = script.read_text().replace("\\\n", " ")
        assert "curl" not in text and "wget" not in text, script.name
        for line in re.findall(r"^.*pip install .*$", text, re.MULTILINE):
            own = "--no-deps" in line and re.search(r'-e \.("| \|\| exit 2)$', line)
            by_hash = "--require-hashes" in line and "-r requirements.lock" in line
            advice = line.lstrip().startswith("echo")
            installer = re.search(r"--user uv==[\d.]+$", line)  # of a bare TPU host
            assert own or by_hash or advice or installer, line
    text = (ROOT / "launch/environment.sh").read_text()
    assert "--require-hashes" in text
    for script in ("test.sh", "demo.sh"):
        assert "environment.sh" in (ROOT / "launch" / script).read_text()
