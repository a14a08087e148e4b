"""A folder that is a web page: the model runs in the browser, without a server.

  index.html       the page, its scripts and style (`page/`)
  model/           encoder.onnx in parts, about.js, and gallery.js if one was given
  runtime/         onnxruntime-web, from its npm package

A page opened from disk may run scripts beside it and may not fetch, so large files lie
in scripts, as base64. The graph (b, s, s, c) uint8 -> embedding, rollout and, with a
classifier, calibrated probabilities is what `graphs` writes. Resizing is the page's:
`page/resize.js` does Pillow's arithmetic.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import pathlib
import tarfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.errors import PacxError, one_line
from pacx_jax.evaluate import rollout
from pacx_jax.evaluate.classifier import Classifier
from pacx_jax.exporting import gallery, graphs
from pacx_jax.exporting.source import Source
from pacx_jax.input import images as imageio
from pacx_jax.types import Array

VERSION = "1.30.0"  # of onnxruntime-web
# In its package's dist/ -> sha256; the first is a script as it is.
RUNTIME = {
    "ort.wasm.min.js": (
        "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81"
    ),
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
GET = f"npm pack onnxruntime-web@{VERSION}"
PART = 12 * 2**20  # bytes of a part of a file
MOST_BYTES = 1_800_000_000  # of the model: browsers give WebAssembly 4 GB
PAGE = pathlib.Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Page(Source):
    """An X-ray encoder, maybe with a classifier, as a page.

    Attributes:
      runtime: onnxruntime-web's package, as npm's .tgz or unpacked.
      gallery: an .npz of `pacx_jax.embed`, whose images are shown as neighbours, or "".
      pictures: the folder that the gallery's paths are relative to.
    """

    runtime: str = ""
    gallery: str = ""
    pictures: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        more = ("probabilities",) if self.head else ()
        return ("embedding", "rollout", *more)

    @property
    def grid(self) -> int:
        """Patches on a side."""
        return self.image_size // self.model.architecture["patch_size"]

    @property
    def classifier(self) -> Classifier:
        """The head with its calibration."""
        head, found = self.head, self.model.heads.calibration
        return Classifier(
            self.encoder, head.kernel, head.bias, head.labels, head.task, found
        )

    def forward(self, images: Array) -> tuple[Array, ...]:
        """uint8 (b, s, s, c) -> `names`: (b, width), (b, grid, grid), (b, labels)."""
        x, view = self.inputs(images)
        module = self.model.module()
        tokens, state = module.apply(
            {"params": self.model.params}, x, view=view, mutable="intermediates"
        )
        blocks = state["intermediates"]
        attentions = [
            blocks[f"block_{i:02d}"]["attn"]["attention"][0]
            for i in range(module.depth)
        ]
        z = tokens[:, 0].astype(jnp.float32)
        found = z, self._rolled_out(attentions)
        return (*found, self._probabilities(z)) if self.head else found

    def _rolled_out(self, attentions: list[Array]) -> Array:
        """`evaluate.rollout.attention_rollout`, in the graph's float32."""
        n, before = attentions[0].shape[-1], attentions[0].shape[-1] - self.grid**2
        start = np.zeros((1, 1, n), np.float32)
        if self.model.architecture.get("pool", "cls") == "mean":
            start[:, :, before:] = 1 / (n - before)
        else:
            start[:, :, 0] = 1
        row = jnp.asarray(start)
        for attention in reversed(attentions):
            mixing = attention.astype(jnp.float32).mean(1) + jnp.eye(n)
            row = row @ (mixing / mixing.sum(-1, keepdims=True))
        return row[:, 0, before:].reshape(-1, self.grid, self.grid)

    def _probabilities(self, z: Array) -> Array:
        """`Classifier.probabilities`, in the graph's float32."""
        x = z @ self.head.kernel + self.head.bias
        labels = self.head.labels
        if self.head.task == "multiclass":
            others = [
                jax.nn.logsumexp(x[:, [j for j in range(len(labels)) if j != i]], 1)
                for i in range(len(labels))
            ]
            x = x - jnp.stack(others, 1)
        if found := self.model.heads.calibration:
            about = [found["labels"][name] for name in labels]
            a, b = (np.float32([each[k] for each in about]) for k in ("a", "b"))
            x = a * x + b
        p = jax.nn.sigmoid(x)
        return p / p.sum(1, keepdims=True) if self.head.task == "multiclass" else p

    def expected(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """As `forward`, by the library's own functions."""
        view, about = self.view if self.with_views else None, self.model.architecture
        z = self.encoder(images, view)
        shares = rollout.attention_rollout(
            self.encoder.attentions(images, view),
            about.get("registers", 0),
            about.get("pool", "cls"),
        )
        if not self.head:
            return z, shares
        classifier = self.classifier
        return z, shares, classifier.probabilities(classifier.logits(z))


def write(folder: pathlib.Path, page: Page) -> None:
    """Writes the page.

    Raises:
      PacxError: no runtime or another version of it, a gallery that does not fit the
        encoder, or a model that browsers have no room for.
    """
    runtime = read_runtime(page.runtime)
    found = gallery.read(page) if page.gallery else None
    for name in ("model", "runtime"):
        (folder / name).mkdir()
    graphs.write_onnx(folder / "model", page)
    parts, size = {}, (folder / "model" / graphs.ONNX).stat().st_size
    if size > MOST_BYTES or len(list((folder / "model").iterdir())) > 1:
        raise PacxError(
            f"--format web: the model has {size} bytes, which is too much for a "
            "browser: export a smaller one"
        )
    data = (folder / "model" / graphs.ONNX).read_bytes()
    (folder / "model" / graphs.ONNX).unlink()
    script, *others = RUNTIME
    (folder / "runtime" / script).write_bytes(runtime[script])
    for name in others:
        parts[f"runtime/{name}"] = _split(folder, f"runtime/{name}", runtime[name])
    parts[f"model/{graphs.ONNX}"] = _split(folder, f"model/{graphs.ONNX}", data)
    for file in sorted(PAGE.iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    if found:
        _write_script(folder / "model" / "gallery.js", "pacx.gallery", found)
    about = _about(page) | {"parts": parts, "gallery": bool(found)}
    _write_script(folder / "model" / "about.js", "pacx.about", about)


def reopen(folder: pathlib.Path, page: Page) -> Callable:
    """The graph, joined again from its parts, in onnxruntime."""
    import onnxruntime

    parts = sorted((folder / "model").glob(f"{graphs.ONNX}.*.js"))
    data = b"".join(base64.b64decode(p.read_text().split('"')[3]) for p in parts)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(session.run(list(page.names), {"images": images}))

    return predict


def use(page: Page) -> str:
    """How to open it, as Markdown."""
    return f"""Open `index.html` in a browser, from disk or from any server of files.
The model runs in the browser, and nothing leaves it. For research, not a medical
device.

`runtime/` is onnxruntime-web {VERSION}, (c) Microsoft Corporation, MIT License."""


def read_runtime(where: str) -> dict[str, bytes]:
    """The files of RUNTIME, in npm's .tgz or a folder that it was unpacked to.

    Raises:
      PacxError: none given, not there, or other files than those of VERSION.
    """
    remedy = f"get it by {GET} and give --runtime=onnxruntime-web-{VERSION}.tgz"
    if not where:
        raise PacxError(
            f"--runtime is missing: the page needs onnxruntime-web {VERSION}: {remedy}"
        )
    path = pathlib.Path(where)
    found = {}
    try:
        if path.is_dir():
            for name in RUNTIME:
                places = [path / name, path / "dist" / name]
                places.append(path / "package" / "dist" / name)
                file = next((p for p in places if p.is_file()), places[0])
                found[name] = file.read_bytes()
        else:
            with tarfile.open(path) as archive:
                for name in RUNTIME:
                    member = archive.extractfile(f"package/dist/{name}")
                    found[name] = member.read() if member else b""
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise PacxError(
            f"--runtime {where}: cannot be read ({one_line(error)}): {remedy}"
        ) from None
    for name, wanted in RUNTIME.items():
        if hashlib.sha256(found[name]).hexdigest() != wanted:
            raise PacxError(
                f"--runtime {where}: its {name} is not that of onnxruntime-web "
                f"{VERSION}, with which the page was tried: {remedy}"
            )
    return found


def _split(folder: pathlib.Path, name: str, data: bytes) -> dict[str, int]:
    """Writes a file's parts as scripts: how many, and the bytes of all."""
    count = 0
    for at in range(0, len(data), PART):
        file = f"{name}.{count:03d}.js"
        text = base64.b64encode(data[at : at + PART]).decode()
        (folder / file).write_text(f'pacx.part("{file}", "{text}");\n')
        count += 1
    return {"count": count, "size": len(data)}


def _write_script(file: pathlib.Path, name: str, content: dict) -> None:
    text = json.dumps(content, ensure_ascii=True)
    file.write_text(f"{name} = {text};\n", encoding="ascii")


def tall_first() -> bool:
    """Whether this Pillow resizes the columns of tall images before their rows."""
    image = np.random.default_rng(0).integers(0, 256, (300, 90), dtype=np.uint8)
    rows_first = imageio.resize_to(imageio.resize_to(image, 300, 60), 60, 60)
    return not np.array_equal(imageio.resize_to(image, 60, 60), rows_first)


def _about(page: Page) -> dict:
    """What the page has to know of the model."""
    about = {
        "image_size": page.image_size,
        "channels": page.channels,
        "grid": page.grid,
        "width": page.model.width,
        "tall_first": tall_first(),
        "labels": [],
        "thresholds": {},
        "calibrated": [],
        "card": page.card,
    }
    if page.head:
        classifier = page.classifier
        known = (classifier.calibration or {"labels": {}})["labels"]
        about["labels"] = list(classifier.labels)
        about["thresholds"] = classifier.thresholds
        about["calibrated"] = [x for x, found in known.items() if found["calibrated"]]
    return about
