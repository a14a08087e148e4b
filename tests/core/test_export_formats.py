"""Exports for other libraries: each is opened there and compared with the encoder."""

import dataclasses
import importlib
import json
import logging
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import export, load_encoder
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.errors import PacxError
from pacx_jax.exporting import pytorch, source, write
from pacx_jax.input.normalize import normalize
from pacx_jax.run import checkpoint, metrics
from tests import tiny

NAMES = tuple(n for n in write.FORMATS if n != "web")  # test_export_web.py
CARD = """# the encoder's card

## Use
load_encoder("path/to/this/folder")

## Limits
"""
LABELS = ["Pneumonia", "Effusion", "Edema"]
REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "realdata" / "cxr"


def need(name):
    """Skips the test where a format's packages are absent.

    PACX_REQUIRE_TORCH=1 makes that a failure, for where they have to be there.
    """
    for package in write.FORMATS[name].packages:
        try:
            if package == "torch":
                importlib.import_module("tests.torchvision_ops")
            importlib.import_module(package)
        except ImportError as e:
            if os.environ.get("PACX_REQUIRE_TORCH") == "1":
                raise
            pytest.skip(f"{name} needs {package}: {e}")


def with_head(model):
    rng = np.random.default_rng(7)
    linear = {
        "kernel": rng.normal(size=(32, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    about = {"encoder_width": 32, "labels": LABELS, "task": "multilabel"}
    heads = Heads("classify", about, {"head": {"linear": linear}})
    return dataclasses.replace(model, heads=heads)


def with_learned_positions(model):
    rng = np.random.default_rng(8)
    learned = rng.normal(size=(1, 17, 32)).astype(np.float32)
    return dataclasses.replace(
        model,
        architecture=model.architecture | {"posemb_grid": [4, 4]},
        params={**model.params, "pos_embed": learned},
    )


def make(model, size=None):
    head = source.classifier_of(model)
    return source.Source(model_folder.at_size(model, size), head, CARD)


@pytest.fixture(scope="module")
def plain():
    return make(tiny.folder("vit"))


@pytest.fixture(scope="module")
def probe():
    """With a head, and an epsilon that no other library has by default."""
    model = with_head(tiny.folder("vit"))
    architecture = model.architecture | {"ln_eps": 1e-3}
    return make(dataclasses.replace(model, architecture=architecture))


def pixels(n, size=32, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def export_to(given, name, out):
    return write.export(given, name, out, list(pixels(8, given.image_size, seed=1)))


def readme_code(path):
    return (path / "README.md").read_text().split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize("name", NAMES)
def test_reopened_export_is_the_encoder_with_its_head_for_any_batch(
    name, probe, tmp_path
):
    # Bound 1e-5. Measured: embedding 1.1e-6, logits 5.7e-6.
    need(name)
    report = export_to(probe, name, tmp_path / "out")
    assert max(report.errors.values()) < 1e-5
    assert set(report.errors) == {"embedding", "logits"}
    predict = write.FORMATS[name].reopen(tmp_path / "out", probe)
    images = pixels(5)
    want = probe.expected(images)
    for n in (1, 3, 5):
        z, logits = predict(images[:n])
        assert z.shape == (n, 32) and z.dtype == np.float32
        assert tiny.worst(z, want[0][:n]) < 1e-5
        assert tiny.worst(logits, want[1][:n]) < 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("learned", [False, True], ids=["sincos", "learned"])
def test_export_at_another_image_size_is_the_network_at_that_size(
    name, learned, tmp_path
):
    # The network itself, not our wrapper of it. Bound 1e-5. Measured 2.5e-6.
    need(name)
    model = tiny.folder("vit")
    model = with_learned_positions(model) if learned else model
    other = make(model, 48)
    report = export_to(other, name, tmp_path / "out")
    assert set(report.errors) == {"embedding"}
    images = pixels(3, 48)
    x = normalize(images, other.mean, other.std)
    want = jax.jit(model.module().apply)({"params": model.params}, x)[:, 0]
    (got,) = write.FORMATS[name].reopen(tmp_path / "out", other)(images)
    assert tiny.worst(got, want) < 1e-5


@pytest.mark.parametrize("name", [n for n in NAMES if n != "safetensors"])
@pytest.mark.parametrize("head", [False, True], ids=["encoder", "probe"])
def test_code_in_the_readme_opens_the_export(
    name, head, plain, probe, tmp_path, monkeypatch
):
    need(name)
    given = probe if head else plain
    report = export_to(given, name, tmp_path / "out")
    monkeypatch.chdir(report.path)
    found = {}
    exec(readme_code(report.path), found)
    n = len(found["images"])
    want = given.expected(np.zeros((n, 32, 32, 3), np.uint8))
    for key, value in zip(given.names, want, strict=True):
        got = np.asarray(found[key])
        assert got.shape == value.shape
        if name != "timm":  # its zeros are grey, not black
            assert tiny.worst(got, value) < 1e-5
    card = (report.path / "README.md").read_text()
    assert "the encoder's card" in card and "on 8 given images" in card
    assert "## Use" not in card and "load_encoder" not in card  # of another format
    assert "## Limits" in card
    about = json.loads((report.path / write.ABOUT).read_text())
    assert set(about["files"]) == {p.name for p in report.path.iterdir()}
    assert about["compared"]["errors"] == report.errors
    assert about["preprocessing"]["mean"] == given.mean
    if head:
        assert about["outputs"][1]["labels"] == LABELS


def test_stablehlo_is_lowered_for_cpu_cuda_and_tpu_with_a_symbolic_batch(
    probe, tmp_path
):
    need("stablehlo")
    path = export_to(probe, "stablehlo", tmp_path / "out").path
    file = (path / "encoder.stablehlo").read_bytes()
    exported = jax.export.deserialize(bytearray(file))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    (images,) = exported.in_avals
    assert str(images.shape) == "(b, 32, 32, 3)" and images.dtype == np.uint8
    assert [str(x.shape) for x in exported.out_avals] == ["(b, 32)", "(b, 3)"]


def test_onnx_tells_its_preprocessing_and_labels(probe, tmp_path):
    need("onnx")
    import onnx
    import onnxruntime

    path = str(export_to(probe, "onnx", tmp_path / "out").path / "encoder.onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert images.shape[1:] == [32, 32, 3] and isinstance(images.shape[0], str)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["preprocessing"])["std"] == probe.std


def test_onnx_weights_too_large_for_one_message_lie_beside_it(
    plain, tmp_path, monkeypatch
):
    need("onnx")
    from pacx_jax.exporting import graphs

    monkeypatch.setattr(graphs, "INLINE_BYTES", 1000)
    path = export_to(plain, "onnx", tmp_path / "out").path
    assert (path / "encoder.onnx.data").stat().st_size > 10_000
    export_to(plain, "onnx", tmp_path / "out")  # it is ours, and is replaced


def test_hf_folder_preprocesses_whole_images_as_the_encoder_does(probe, tmp_path):
    # Bound 1e-5. Measured 1.4e-6.
    need("hf")
    import torch
    import transformers

    path = export_to(probe, "hf", tmp_path / "out").path
    images = [pixels(1, s, s)[0][: s - 9] for s in (50, 90, 20)]
    processor = transformers.AutoImageProcessor.from_pretrained(path, backend="pil")
    inputs = processor([PIL.Image.fromarray(x) for x in images], return_tensors="pt")
    model = transformers.ViTForImageClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        got = model(**inputs).logits.numpy()
    want = probe.encoder(images) @ probe.head.kernel + probe.head.bias
    assert tiny.worst(got, want) < 1e-5
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.layer_norm_eps == 1e-3


def test_the_named_timm_model_has_the_sizes_it_is_called_with():
    need("timm")
    import timm

    model = timm.create_model(pytorch.TIMM, device="meta", num_classes=0)
    embed, heads = model.patch_embed, model.blocks[0].attn.num_heads
    found = (*embed.img_size, *embed.patch_size, model.embed_dim, len(model.blocks))
    assert found == (224, 224, 16, 16, 768, 12) and heads == 12
    assert list(pytorch.TIMM_SIZES.values()) == [224, 16, 768, 12, 12]
    assert model.norm.eps == pytorch.TIMM_EPS


def test_timm_is_called_with_the_sizes_that_differ():
    def call(**fields):
        model = tiny.folder("vit")
        architecture = model.architecture | fields
        given = dataclasses.replace(model, architecture=architecture)
        return pytorch.timm_call(source.Source(given))

    base = {"width": 768, "depth": 12, "num_heads": 12, "image_size": 224}
    assert call(**base, patch_size=16) == ({"num_classes": 0}, None)
    arguments, eps = call(**base, patch_size=8, ln_eps=1e-5)
    assert (arguments, eps) == ({"patch_size": 8, "num_classes": 0}, 1e-5)


BROKEN = {
    "wrong": (lambda x: (np.zeros((len(x), 32)),), "largest error"),
    "nan": (lambda x: (np.full((len(x), 32), np.nan),), "nan"),
    "shape": (lambda x: (np.zeros((1, 32)),), r"\(2, 32\).*not.*\(8, 32\)"),
    "raises": (lambda x: 1 / 0, "ZeroDivisionError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_export_that_is_not_the_encoder_leaves_nothing(
    case, plain, tmp_path, monkeypatch
):
    predict, message = BROKEN[case]
    good = write.FORMATS["timm"]
    broken = dataclasses.replace(good, packages=(), reopen=lambda *args: predict)
    monkeypatch.setitem(write.FORMATS, "timm", broken)
    with pytest.raises(PacxError, match=message):
        export_to(plain, "timm", tmp_path / "new" / "deep" / "out")
    assert not list(tmp_path.iterdir())
    # Nor does it touch what an earlier one wrote.
    monkeypatch.setitem(
        write.FORMATS,
        "timm",
        dataclasses.replace(good, packages=(), reopen=lambda *args: plain.expected),
    )
    path = export_to(plain, "timm", tmp_path / "out").path
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    monkeypatch.setitem(write.FORMATS, "timm", broken)
    with pytest.raises(PacxError, match=message):
        export_to(plain, "timm", path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_of_that_format_is_left_alone(plain, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "file").write_text("mine")
    folder = export_to(plain, "safetensors", tmp_path / "folder").path
    for name in ("safetensors", "stablehlo"):
        for path in (foreign, tmp_path / "file"):
            with pytest.raises(PacxError, match="no earlier"):
                export_to(plain, name, path)
    with pytest.raises(PacxError, match="no earlier"):
        export_to(plain, "stablehlo", folder)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(PacxError, match="no earlier"):
        export_to(plain, "safetensors", folder)
    assert (foreign / "config.json").read_text() == '{"model_type": "vit"}'
    assert (tmp_path / "file").read_text() == (folder / "mine.txt").read_text()
    (folder / "mine.txt").unlink()
    export_to(plain, "safetensors", folder)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "safetensors"])
def test_missing_package_is_told_in_one_line_with_its_extra(
    name, plain, tmp_path, monkeypatch
):
    form = write.FORMATS[name]
    monkeypatch.setitem(sys.modules, form.packages[0], None)
    with pytest.raises(PacxError) as error:
        export_to(plain, name, tmp_path / "out")
    text = str(error.value)
    assert f"needs {form.packages[0]}, which is not installed" in text
    assert f"pip install -e '.[{form.extra}]'" in text and "\n" not in text
    setup = (pathlib.Path(export.__file__).parents[1] / "setup.py").read_text()
    assert f'"{form.extra}": [' in setup
    assert ("pip install --no-deps 'jax2onnx" in text) == (
        form.extra in ("onnx", "web")
    )
    assert '"jax2onnx' not in setup  # pip would take an older Orbax for it
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, with_head(tiny.folder("vit")), CARD)
    return path


@pytest.fixture(scope="module")
def x_rays(tmp_path_factory):
    """A folder of two images, fewer than are compared in batches."""
    path = tmp_path_factory.mktemp("x_rays")
    for i, image in enumerate(pixels(2, 40)):
        PIL.Image.fromarray(image).save(path / f"{i}.png")
    rows = [",".join(["path", *LABELS]), "0.png,1,0,0", "1.png,0,1,0"]
    (path / "labels.csv").write_text("\n".join(rows))
    return path


def call(*args):
    return export.main([str(x) for x in args])


def test_command_compares_on_the_given_x_rays(folder, tmp_path, capsys):
    # Bound 1e-5. Measured 1.2e-6.
    need("timm")
    if not REAL.is_dir():
        pytest.skip(f"{REAL.name}: no real X-rays in this place")
    out = tmp_path / "out"
    assert (
        call(f"--encoder={folder}", "--format=timm", f"--out={out}", f"--images={REAL}")
        == 0
    )
    printed = capsys.readouterr().out
    assert "on 8 given images" in printed and "timm.create_model(" in printed
    errors = json.loads((out / write.ABOUT).read_text())["compared"]["errors"]
    assert errors["embedding"] < 1e-5


def test_command_copies_a_model_folder_at_another_size(
    folder, x_rays, tmp_path, capsys
):
    out = tmp_path / "out"
    args = [f"--encoder={folder}", f"--out={out}", f"--images={x_rays}"]
    assert call(*args, "--image_size=64") == 0
    assert "on 2 given images" in capsys.readouterr().out
    encoder = load_encoder(out)
    assert encoder.image_size == 64 and model_folder.load(out).heads is None
    assert (out / "README.md").read_text() == CARD
    assert call(*args, "--head") == 0
    assert model_folder.load(out).heads.architecture["labels"] == LABELS


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--encoder={vit}", "--format=timm"], "--out is missing"),
        (["--encoder={vit}", "--out={out}"], "--images is missing: name a folder"),
        (["--encoder={vit}", "--out={out}", "--which=best"], "--which goes with"),
        (
            ["--encoder={vit}", "--out={out}", "--image_size=30", "--images={x_rays}"],
            "image size 30 is not divisible by the encoder's patch_size 8",
        ),
        (["--encoder={bare}", "--out={bare}"], "bare is the encoder itself"),
        (
            ["--encoder={labs}", "--out={out}", "--format=hf"],
            "holds a labs_dae model: only a vit has --format",
        ),
        (["--encoder={nowhere}", "--out={out}"], "nowhere: no such folder"),
        (["--encoder={bare}", "--out={out}", "--head"], "bare holds no head"),
        (
            ["--encoder={vit}", "--out={out}", "--images={nowhere}"],
            "nowhere: no such folder",
        ),
        (
            ["--workdir={vit}", "--out={out}", "--format=hf"],
            "is no run's configuration",
        ),
    ],
    ids=lambda x: x[-1][:20] if isinstance(x, list) else "",
)
def test_command_tells_bad_input_in_one_line(
    args, expected, folder, x_rays, tmp_path, capsys
):
    model_folder.save(tmp_path / "labs", tiny.folder("labs_dae"), "")
    model_folder.save(tmp_path / "bare", tiny.folder("vit"), "")
    paths = {k: tmp_path / k for k in ("out", "labs", "nowhere", "bare")}
    args = [x.format(vit=folder, x_rays=x_rays, **paths) for x in args]
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert expected in error
    assert not (tmp_path / "out").exists()


def test_wrong_flags_are_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        call("--encoder=a", "--workdir=b")
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1


def test_trained_probe_is_compared_on_the_x_rays_of_its_run(
    x_rays, tmp_path, monkeypatch, capsys
):
    need("stablehlo")
    tree = with_head(tiny.folder("vit"))
    model_folder.save(tmp_path / "vit", tree, "")
    config = tiny.config(
        "linear_probe",
        model_init=str(tmp_path / "vit"),
        data__image_size=32,
        data__source="folder",
        data__path=str(x_rays),
        data__val_fraction=0.5,
        data__label_columns=tuple(LABELS),
        task="multiclass",
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    (run / "labels.json").write_text(json.dumps(LABELS))
    (run / "best.json").write_text('{"step": 1}')
    writer = metrics.MetricsWriter(run, 0)
    writer.write(1, {"loss": 0.5, "val/auroc_macro": 0.75})
    writer.close()
    params = {"encoder": tree.params, "head": tree.heads.params["head"]}
    monkeypatch.setattr(checkpoint, "read_params", lambda *args: params)
    out = tmp_path / "out"
    args = [f"--workdir={run}", "--format=stablehlo", f"--out={out}"]
    assert call(*args, "--head") == 0
    printed = capsys.readouterr().out
    assert "(logits) on 1 validation images of the run" in printed
    logits = json.loads((out / write.ABOUT).read_text())["outputs"][1]
    assert logits["labels"] == LABELS and logits["task"] == "multiclass"
    assert call(*args, f"--images={x_rays}") == 0  # without --head: the encoder alone
    assert len(json.loads((out / write.ABOUT).read_text())["outputs"]) == 1
    config.data.path = str(tmp_path / "gone")
    (run / "config.json").write_text(config.to_json())
    assert call(*args) == 2
    error = capsys.readouterr().err
    assert "--images is missing" in error and "gone: no such folder" in error


def test_encoder_of_labs_is_copied_and_read_again(tmp_path, monkeypatch, capsys):
    model_folder.save(tmp_path / "labs", tiny.folder("labs_dae"), CARD)
    args = [f"--encoder={tmp_path / 'labs'}", f"--out={tmp_path / 'out'}"]
    assert call(*args) == 0
    assert "the same to the bit" in capsys.readouterr().out
    assert model_folder.load(tmp_path / "out").kind == "labs_dae"
    loaded = tiny.folder("labs_dae", seed=5)
    load = model_folder.load
    monkeypatch.setattr(model_folder, "load", lambda path, kind=None: loaded
                        if kind else load(path))  # fmt: skip
    assert call(args[0], f"--out={tmp_path / 'new'}") == 2
    assert "differs from the model in" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_help_needs_no_other_library():
    code = """
import sys

class Absent:  # for one that is merely installed, others' optional imports find it
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm", "transformers", "onnx", "jax2onnx"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from pacx_jax import export
export.main(["--help"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "--image_size" in done.stdout


def test_conversion_leaves_the_loggers_as_they_were(plain, tmp_path):
    need("onnx")
    before = logging.getLogger("onnx_ir").level
    export_to(plain, "onnx", tmp_path / "out")
    assert logging.getLogger("onnx_ir").level == before
