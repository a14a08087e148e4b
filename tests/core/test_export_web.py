"""The page that `--format=web` writes, opened in a browser and compared with Python.

PACX_ORT_WEB names onnxruntime-web's package (docs/web.md); without it, or without
Chromium or the extra onnx, the tests that need them are skipped.
"""

import base64
import contextlib
import csv
import dataclasses
import functools
import http.server
import io
import json
import os
import re
import threading
import zlib

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from pacx_jax import embed, export
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.model_heads import Heads
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import rollout
from pacx_jax.evaluate.classifier import Classifier
from pacx_jax.exporting import gallery, source, web
from pacx_jax.input import images
from tests import browser, tiny
from tests.core.test_export_formats import need

LABELS = ("Edema", "Effusion", "Rare")
ASK = """
async function answers() {
  await pacx.ready;
  const found = {};
  const rows = [];
  for (const [name, text] of Object.entries(CASES)) {
    const start = performance.now();
    const result = await pacx.file(name, pacx.bytes(text));
    rows.push(result);
    show(result);
    found[name] = {error: result.error, seconds: (performance.now() - start) / 1000};
    if (result.error) continue;
    const bytes = Array.from(result.pixels, (b) => String.fromCharCode(b));
    found[name].pixels = btoa(bytes.join(""));
    for (const key of ["embedding", "rollout", "probabilities"]) {
      found[name][key] = [...(result[key] || [])];
    }
    const near = pacx.gallery ? pacx.nearest(result.embedding, 2) : [];
    found[name].nearest = near.map((n) => n.name);
  }
  const fetched = await fetch("about.js").then(() => "sent", () => "refused");
  const page = {csv: pacx.csv(rows, true), fetched, text: document.body.innerText};
  page.canvases = document.querySelectorAll("article canvas").length;
  page.meters = document.querySelectorAll("article meter").length;
  return {found, page};
}
"""
# What a reader does: drops a file, chooses another, saves the table.
USE = """
const chosen = (name) => {
  const held = new DataTransfer();
  held.items.add(new File([pacx.bytes(CASES[name])], name));
  return held;
};
const said = (words) => until(() => at("state").textContent.startsWith(words));
async function answers() {
  const fresh = at("files").disabled && at("csv").disabled;
  await said("Ready.");
  const about = {bubbles: true, cancelable: true, dataTransfer: chosen("dropped.png")};
  const drop = new DragEvent("drop", about);
  at("results").dispatchEvent(drop);
  await said("1 files");
  at("files").files = chosen("chosen.png").files;
  at("files").dispatchEvent(new Event("change", {bubbles: true}));
  await said("2 files");
  let blob = null, saved = "";
  URL.createObjectURL = (x) => { blob = x; return "blob:x"; };
  HTMLAnchorElement.prototype.click = function () { saved = this.download; };
  at("csv").click();
  const csv = await blob.text();
  return {fresh, prevented: drop.defaultPrevented, saved, csv};
}
"""
LOOK = """
async function answers() {
  await pacx.ready;
  const found = [await problems()];
  for (const [name, text] of Object.entries(CASES)) {
    show(await pacx.file(name, pacx.bytes(text)));
  }
  document.querySelector("details").open = true;
  return {found: [...found, await problems()], text: document.body.innerText};
}
"""
NO_SIMD = """
WebAssembly.validate = () => false;
async function answers() {
  await pacx.ready.catch(() => undefined);
  const {textContent, className} = at("state");
  return {textContent, className, disabled: at("files").disabled};
}
"""


def ask(site, script, tmp_path, cases=(), host="", flags=()):
    """What `answers` of a script that runs before the page's own ones returns.

    Args:
      cases: name -> bytes of a file, in base64 in the script's CASES.
      host: the address of a server of the site; "": the page is opened from disk.
      flags: of Chromium.
    """
    encoded = {k: base64.b64encode(v).decode() for k, v in dict(cases).items()}
    text = f"const CASES = {json.dumps(encoded)};\n{script}\n{browser.REPORT}"
    (site / "ask.js").write_text(text)
    page = (site / "index.html").read_text()
    page = page.replace("<title>", '<script src="ask.js"></script><title>')
    (site / "ask.html").write_text(page)
    address = f"{host}/ask.html" if host else (site / "ask.html").as_uri()
    return browser.answered(address, tmp_path, *flags)


@contextlib.contextmanager
def hosted(folder):
    """(address, paths that were asked for) of a server of static files."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append((self.path, int(code)))

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join(30)


def written(image, form="PNG", **options):
    if not isinstance(image, PIL.Image.Image):
        image = PIL.Image.fromarray(image)
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def interlaced(grey):
    """An Adam7 PNG of uint8 (h, w), which PIL reads and does not write."""

    def chunk(name, data):
        crc = zlib.crc32(name + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + name + data + crc

    corners = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
               (0, 1, 2, 2), (1, 0, 2, 1))  # fmt: skip
    rows = [row for y, x, dy, dx in corners for row in grey[y::dy, x::dx] if row.size]
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    h, w = (n.to_bytes(4, "big") for n in grey.shape)
    header = chunk(b"IHDR", w + h + bytes([8, 0, 0, 0, 1]))
    pixels = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def files():
    """Name -> an X-ray's file that the page has to read as Python does."""
    rng = np.random.default_rng(0)
    small = PIL.Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8))
    smooth = np.asarray(small.resize((147, 189), PIL.Image.Resampling.BICUBIC))
    noise = rng.integers(0, 256, (61, 47, 3), dtype=np.uint8)
    turned = PIL.Image.Exif()
    turned[0x112] = 6
    return {
        "smooth.png": written(smooth),
        "small.png": written(noise[:20, :16, 0]),
        "colour.png": written(noise),
        "alpha.png": written(np.dstack([noise, noise[..., 0]])),
        "palette.png": written(PIL.Image.fromarray(noise).quantize(16)),
        "bits.png": written(noise[..., 0] > 128),
        "16.png": written(rng.integers(0, 65536, (33, 35)).astype(np.uint16)),
        "tall.png": written(noise[:, :20]),
        "interlaced.png": interlaced(noise[..., 1]),
        "turned.png": written(smooth, exif=turned),
        "=smooth,.jpg": written(smooth, "JPEG", quality=90),
        "progressive.jpg": written(smooth, "JPEG", progressive=True),
        "colour.jpg": written(PIL.Image.fromarray(np.dstack([smooth] * 3)), "JPEG"),
    }


def dicoms():
    """The same of DICOM, whose values go through windows and tables."""
    from tests.input import dicom_files as made

    window = {"WindowCenter": 1000.5, "WindowWidth": 300}
    voi = np.linspace(0, 1023, 1000).round().astype(int) ** 2 // 1023
    grey = np.clip(made.STORED // 16, 0, 255).astype(np.uint8)
    frame = written(grey, "JPEG", quality=90)
    baseline = made.encapsulated(frame, made.BASELINE, grey, 8, allocated=8)
    return {
        "plain.dcm": made.made(),
        "implicit.dcm": made.made(syntax=made.IMPLICIT, **window),
        "inverted.dcm": made.made(PhotometricInterpretation="MONOCHROME1", **window),
        "signed.dcm": made.made(made.STORED - 2048, RescaleSlope="0.5", **window),
        "table.dcm": made.made(VOILUTSequence=made.lut(voi, 500, 10)),
        "padded.dcm": made.made(PixelPaddingValue=int(made.STORED[0, 5])),
        "baseline.dcm": made.data(baseline),
    }


def bad():
    """Name -> a file that the page refuses, and words of its line."""
    from tests.input import dicom_files as made

    png = files()["smooth.png"]
    damaged = png[:300] + bytes([png[300] ^ 255]) + png[301:]
    huge = png[:16] + (20_000).to_bytes(4, "big") + (10_000).to_bytes(4, "big")
    header = huge[12:24] + png[24:29]
    crc = zlib.crc32(header).to_bytes(4, "big")
    empty = made.dataset()
    del empty.PixelData
    rle = made.encapsulated(b"\0" * 64, made.RLE)
    return {
        "text.png": (b"no image", "not a JPEG, PNG or DICOM"),
        "empty.png": (b"", "empty"),
        "archive.png": (b"PK\x03\x04" + bytes(60), "not a JPEG, PNG or DICOM"),
        "cut.png": (png[: len(png) // 2], "cut off"),
        "damaged.png": (damaged, "damaged"),
        "huge.png": (png[:12] + header + crc + png[33:], "10000 pixels"),
        "cut.jpg": (files()["=smooth,.jpg"][:900], "cut off"),
        "nothing.dcm": (made.data(empty), "PixelData is absent"),
        "rle.dcm": (made.data(rle), "TransferSyntaxUID 1.2.840.10008.1.2.5"),
    }


@pytest.fixture(scope="module")
def classifier():
    rng = np.random.default_rng(3)
    rule = {"max_f1": {"logit": 0.0, "probability": 0.4}}
    known = {"known": 90, "positives": 40, "calibrated": True, "thresholds": rule}
    labels = {name: known | {"a": 0.7, "b": -0.2} for name in LABELS[:2]}
    rare = {"known": 90, "positives": 0, "calibrated": False, "thresholds": {}}
    labels["Rare"] = rare | {"a": 1.0, "b": 0.0}
    encoder = Encoder(tiny.folder("vit"), batch_size=8, num_devices=1)
    kernel, bias = rng.normal(size=(32, 3)), rng.normal(size=3)
    about = {"format": 1, "chosen_on": "val", "unit": "image", "labels": labels}
    return Classifier(encoder, kernel, bias, LABELS, calibration=about)


def exported(root, with_gallery):
    """The site of the model folder root/model, checked on four images of `files`."""
    need("web")
    runtime = os.environ.get("PACX_ORT_WEB")
    if not runtime:
        pytest.skip(f"PACX_ORT_WEB is not set: {web.GET}")
    (root / "images").mkdir()
    for name in ("smooth.png", "small.png", "colour.png", "=smooth,.jpg"):
        (root / "images" / name).write_bytes(files()[name])
    model, pictures = f"--encoder={root / 'model'}", f"--images={root / 'images'}"
    more = [f"--runtime={runtime}", "--format=web"]
    if with_gallery:
        more.append(f"--gallery={root / 'gallery.npz'}")
        assert embed.main([model, pictures, f"--out={root / 'gallery.npz'}"]) == 0
    assert export.main([model, pictures, *more, f"--out={root / 'site'}"]) == 0
    return root / "site"


@pytest.fixture(scope="module")
def site(classifier, tmp_path_factory):
    """A page with a classifier and a gallery."""
    root = tmp_path_factory.mktemp("web")
    classifier.save(root / "model")
    return exported(root, with_gallery=True)


def differences(found, good, encoder, classifier=None):
    """The largest error of each of the page's numbers; its pixels are Python's."""
    errors = {}
    for name, data in good.items():
        assert "error" not in found[name], (name, found[name])
        pixels = encoder.preprocess(images.decode(data, name))
        got = np.frombuffer(base64.b64decode(found[name]["pixels"]), np.uint8)
        assert np.array_equal(got, pixels.ravel()), name
        z = encoder([pixels])
        shares = rollout.attention_rollout(encoder.attentions([pixels]))
        want = {"embedding": z, "rollout": shares}
        if classifier:
            want["probabilities"] = classifier.probabilities(classifier.logits(z))
        for key, numbers in want.items():
            error = np.abs(np.float64(found[name][key]) - numbers.ravel()).max()
            errors[key] = max(errors.get(key, 0), error)
    return errors


def test_the_page_opened_from_disk_gives_python_s_numbers(site, classifier, tmp_path):
    # Pixels are the same. Bound 1e-4. Measured: embedding 1.4e-6, probabilities 7.5e-7.
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    good, wrong = files() | dicoms(), bad()
    # Bad files first: the page goes on with the good ones.
    cases = {name: data for name, (data, _) in wrong.items()} | good
    found, page = ask(site, ASK, tmp_path, cases).values()
    errors = differences(found, good, classifier.encoder, classifier)
    assert max(errors.values()) < 1e-4, errors
    for name, (_, words) in wrong.items():
        assert words in found[name].get("error", ""), (name, found[name])
    assert found["smooth.png"]["nearest"][0] == "smooth.png"
    assert page["fetched"] == "refused"
    assert page["canvases"] == len(good) and page["meters"] == 3 * len(good)
    assert "not a medical device" in page["text"].lower()
    head, *rows = page["csv"].splitlines()
    assert head.startswith("file,error,Edema,Effusion,Rare,nearest,similarity,z0,")
    assert len(rows) == len(cases)
    assert any(row.startswith('"\'=smooth,.jpg",,') for row in rows)


@pytest.mark.full
def test_a_vit_b_of_224_pixels_gives_python_s_numbers_in_the_browser(tmp_path):
    # Bound 1e-4. Measured: embedding 3.5e-6, rollout 7.3e-9.
    about = {"patch_size": 16, "width": 768, "depth": 12, "num_heads": 12}
    about = tiny.VIT | about | {"image_size": 224}
    empty = dataclasses.replace(tiny.folder("vit"), architecture=about, params={})
    image = jnp.zeros((1, 224, 224, 3))
    params = tiny.random_params(empty.module(), image, noise=0.05)
    model = dataclasses.replace(empty, params=params)
    model_folder.save(tmp_path / "model", model, card="a test's")
    names = ("smooth.png", "colour.png", "16.png", "=smooth,.jpg", "interlaced.png")
    cases = {name: files()[name] for name in names}
    page = exported(tmp_path, with_gallery=False)
    found = ask(page, ASK, tmp_path, cases)["found"]
    errors = differences(found, cases, Encoder(model, batch_size=8, num_devices=1))
    print(errors, [found[name]["seconds"] for name in names])
    assert max(errors.values()) < 1e-4, errors


def test_the_page_of_a_static_host_takes_drops_and_choices_and_saves_a_table(
    site, classifier, tmp_path
):
    data = files()
    cases = {"dropped.png": data["smooth.png"], "chosen.png": data["colour.png"]}
    with hosted(site) as (host, asked):
        found = ask(site, USE, tmp_path, cases, host)
    assert found["fresh"] and found["prevented"] and found["saved"] == "pacx.csv"
    assert asked and {code for _, code in asked} == {200}, asked
    head, *rows = csv.reader(io.StringIO(found["csv"]))
    assert [row[0] for row in rows] == list(cases)
    got = np.float64([row[head.index(LABELS[0]) :][: len(LABELS)] for row in rows])
    pixels = [images.decode(x, name) for name, x in cases.items()]
    want = classifier.predict(pixels)
    assert np.abs(got - want).max() < 1e-4  # as from disk


def test_a_browser_without_simd_is_told_on_the_page(site, tmp_path):
    found = ask(site, NO_SIMD, tmp_path)
    assert "no WebAssembly SIMD" in found["textContent"], found
    assert "use Chrome 91" in found["textContent"] and found["className"] == "error"
    assert found["disabled"]  # nothing can be chosen that would not be computed


@pytest.mark.parametrize("flags", [(), (browser.DARK,)], ids=["light", "dark"])
def test_axe_finds_nothing_wrong_with_the_page(site, tmp_path, flags):
    cases = {"good.png": files()["smooth.png"], "bad.txt": b"no image"}
    found = ask(site, f"{browser.axe()}\n{LOOK}", tmp_path, cases, flags=flags)
    assert "no threshold" in found["text"] and "not a JPEG" in found["text"]
    assert found["found"] == [[], []]  # without and with results


def test_the_page_loads_nothing_from_elsewhere():
    for file in web.PAGE.iterdir():
        text = file.read_text()
        assert not re.search(r"https?://|\bimport\b|innerHTML|\beval\(", text), (
            file.name
        )
    page = (web.PAGE / "index.html").read_text()
    assert "default-src 'none'" in page and "connect-src" not in page
    scripts = re.findall(r'src="([^"]+)"', page)
    here = {p.name for p in web.PAGE.iterdir()} | {"runtime/ort.wasm.min.js"}
    assert set(scripts) <= here


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
@pytest.mark.parametrize("kind", ["vit", "registers", "mean", "views"])
def test_the_graph_s_outputs_are_the_library_s(kind, task, classifier):
    # Bound 1e-5. Measured 1.3e-6.
    model = {
        "vit": lambda: tiny.folder("vit"),
        "registers": lambda: tiny.foreign_folder("dinov2_hf"),
        "mean": lambda: tiny.foreign_folder("eva02"),
        "views": tiny.mvmae_folder,
    }[kind]()
    about, rng = classifier.calibration, np.random.default_rng(4)
    linear = {"kernel": rng.normal(size=(32, 3)), "bias": rng.normal(size=3)}
    linear = {k: v.astype(np.float32) for k, v in linear.items()}
    stands = {"encoder_width": 32, "labels": list(LABELS), "task": task}
    heads = Heads("classify", stands, {"head": {"linear": linear}}, about)
    model = dataclasses.replace(model, heads=heads)
    page = web.Page(model, source.classifier_of(model), "", "lateral")
    pixels = rng.integers(0, 256, (3, 32, 32, page.channels), dtype=np.uint8)
    got, want = page.forward(pixels), page.expected(pixels)
    assert page.names == ("embedding", "rollout", "probabilities")
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape and tiny.worst(x, y) < 1e-5


def test_a_runtime_that_is_missing_or_another_says_how_to_get_it(tmp_path):
    def refused(where):
        with pytest.raises(PacxError) as e:
            web.read_runtime(str(where))
        assert f"npm pack onnxruntime-web@{web.VERSION}" in str(e.value)
        return str(e.value)

    assert "--runtime is missing" in refused("")
    assert "cannot be read" in refused(tmp_path / "nowhere.tgz")
    (tmp_path / "no.tgz").write_bytes(b"no archive")
    assert "cannot be read" in refused(tmp_path / "no.tgz")
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    assert "cannot be read" in refused(folder)
    for name in web.RUNTIME:
        (folder / "dist" / name).write_text("another version")
    assert "is not that of onnxruntime-web" in refused(folder)


def test_a_gallery_of_another_encoder_is_refused(classifier, tmp_path):
    (tmp_path / "a.png").write_bytes(files()["smooth.png"])
    page = web.Page(
        tiny.folder("vit", seed=9),
        gallery=str(tmp_path / "g.npz"),
        pictures=str(tmp_path),
    )
    z = classifier.encoder([str(tmp_path / "a.png")])

    def refused(**arrays):
        np.savez(tmp_path / "g.npz", **arrays)
        with pytest.raises(PacxError) as e:
            gallery.read(page)
        return str(e.value)

    assert "not this encoder's" in refused(path=["a.png"], embedding=z)
    assert "of width 32" in refused(path=["a.png"], embedding=z[:, :5])
    assert "no such file" in refused(path=["b.png"], embedding=z)
    assert "no embeddings of" in refused(other=z)


def test_flags_of_the_page_go_with_its_format(classifier, tmp_path, capsys):
    classifier.save(tmp_path / "model")
    (tmp_path / "a.png").write_bytes(files()["smooth.png"])
    flags = [f"--encoder={tmp_path / 'model'}", f"--images={tmp_path}"]
    flags += [f"--out={tmp_path / 'out'}"]
    assert export.main([*flags, "--runtime=x"]) == 2
    assert "--format=web" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
