"""A trained CheXmix as functions: it writes reports, fills in X-rays, and scores both.

What is hidden of an X-ray is grey before the image tokenizer sees it, so that no code
of another patch tells of it (`models.unified_encoder`).

Shape letters: n images, m texts, h w c image, k codes of an image, t text tokens.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward, model_folder, xray_encoder
from pacx_jax.errors import PacxError
from pacx_jax.input import tokenizer
from pacx_jax.input.normalize import normalize
from pacx_jax.models import unified_generation
from pacx_jax.models.unified import IMAGE, PAD, TEXT

WAYS = ("sequence", "at once")  # of filling in


class Generator:
    """Writes, fills in and scores with a model folder of kind "unified".

    Rows are split over the devices, the parameters are on each. What is drawn depends
    on the seed and an image's number in the call alone.

    Args:
      folder: as read by `model_folder.load`.
      words: the tokenizer of reports that it was trained with; None: it neither writes
        nor reads texts.
      batch_size: most rows a step of all devices, rounded up to a multiple of them.
      dtype: of the transformer's matrix products.
      num_devices: how many devices to use; 0 = all.

    Attributes:
      image_size, channels: of the images.
      grid: codes a side.
      length: most tokens of a text, with [CLS] and [SEP]; longer ones are cut.

    Raises:
      PacxError: another tokenizer.
    """

    def __init__(
        self,
        folder: model_folder.ModelFolder,
        words: tokenizer.Tokenizer | None,
        batch_size: int = 32,
        dtype: str = "float32",
        num_devices: int = 0,
    ):
        a, about = folder.architecture, folder.preprocessing["report"]
        if words is not None and words.sha256 != about["sha256"]:
            raise PacxError(
                f"{words.path}: another tokenizer (sha256 {words.sha256[:12]}) than "
                f"the model was trained with ({about['sha256'][:12]}): give that one"
            )
        self.image_size, self.channels = a["image_size"], a["channels"]
        self.grid = self.image_size // a["patch_size"]
        self.length, self.sections = about["length"], tuple(about["sections"])
        self.tokenizer, self.module = words, folder.module(dtype)
        self.words, self.dtype = self.module.words, dtype
        self.mesh = sharding.make_mesh(num_devices)
        self.batch_size = sharding.padded_size(batch_size, self.mesh)
        self.params = jax.device_put(folder.params, sharding.replicated(self.mesh))
        self._mean, self._std = (folder.preprocessing[k] for k in ("mean", "std"))
        self._jitted: dict = {}

    def pixels(self, images) -> np.ndarray:
        """X-rays of any size (see `Encoder`) -> uint8 (n, s, s, c), squashed."""
        size, each = (self.image_size, self.channels), xray_encoder.each_image
        rows = [xray_encoder.preprocess(image, *size) for image in each(images)]
        none = np.zeros((0, self.image_size, self.image_size, self.channels), np.uint8)
        return np.stack(rows) if rows else none

    def codes(self, images, hidden: np.ndarray | None = None) -> np.ndarray:
        """X-rays -> codes (n, k) int32, row by row; `hidden` is (k,) or (n, k) bool."""
        images = self.pixels(images)

        def run(params, inputs):
            x, hidden = normalize(inputs[0], self._mean, self._std), inputs[1]
            return self.module.apply({"params": params}, x, hidden, method="codes")

        hidden = self._hidden(len(images), hidden)
        return self._batches("codes", run, (images, hidden), (self.grid**2,), np.int32)

    def write(
        self,
        images,
        hidden: np.ndarray | None = None,
        *,
        k: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """One report for each X-ray.

        Args:
          hidden: patches that the model does not see, (k,) or (n, k) bool; None: none.
          k, temperature, top_p: see `text_generation.chosen`; 0 is greedy.
        """
        codes = self.codes(images, hidden)
        text = np.full((len(codes), self.length), self.words.pad_id, np.int32)
        text[:, 0] = self.words.start_id
        tokens = self._sequences(codes, text, False)
        image, first = slice(1, 1 + self.grid**2), self.grid**2 + 3  # behind [CLS]
        hidden = self._hidden(len(codes), hidden)
        tokens[:, image] = np.where(hidden, self.words.mask, tokens[:, image])
        wanted = np.full(tokens.shape, PAD, np.int32)
        wanted[:, first:] = TEXT
        ways = (k, temperature, top_p, seed)
        found = self._fill(tokens, wanted, first, "sequence", *ways)
        return [self.tokenizer.decode(row) for row in found[:, first - 1 :]]

    def paint(
        self,
        images,
        hidden: np.ndarray,
        texts: Sequence[str] | None = None,
        *,
        way: str = "sequence",
        k: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """X-rays whose hidden patches are filled in, (n, s, s, c) in [0, 1].

        Args:
          hidden: (k,) or (n, k) bool, row by row. Their pixels are not looked at.
          texts: reports that stand before the images; None: none.
          way: one of WAYS. "sequence" writes code after code, each of which sees those
            written before; "at once" writes all from the visible codes before them.
          k, temperature, top_p: see `text_generation.chosen`; 0 is greedy.
        """
        if way not in WAYS:
            raise PacxError(f"way {way!r}: choose {' or '.join(WAYS)}")
        pixels = self.pixels(images)
        hidden = self._hidden(len(pixels), hidden)
        text = self._texts([""] * len(pixels) if texts is None else texts)
        if len(text) != len(pixels):
            raise PacxError(f"{len(text)} texts, {len(pixels)} images: give one each")
        tokens = self._sequences(self.codes(pixels, hidden), text, True)
        place = tokens >= self.words.first_code
        wanted = np.full(tokens.shape, PAD, np.int32)
        wanted[place] = np.where(hidden.reshape(-1), IMAGE, PAD)
        found = self._fill(tokens, wanted, 1, way, k, temperature, top_p, seed)
        codes = found[place].reshape(len(found), -1) - self.words.first_code
        side = hidden.reshape(-1, self.grid, self.grid)
        factor = self.image_size // self.grid
        inside = side.repeat(factor, 1).repeat(factor, 2)[..., None]
        return np.where(inside, self.decode(codes), np.float32(pixels / 255))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, k) -> images (n, s, s, c) float32, pixels in [0, 1]."""
        module = self.module.vq
        mean, std = (jnp.asarray(x) for x in (self._mean, self._std))

        def run(params, inputs):
            x = module.apply({"params": params["vq"]}, inputs[0], method="decode")
            return jnp.clip(x * std + mean, 0, 1).astype(jnp.float32)

        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.grid**2:
            raise PacxError(
                f"codes of shape {codes.shape}: give (n, {self.grid**2}) of an image "
                f"of {self.image_size} pixels a side"
            )
        if len(codes) and not 0 <= codes.min() <= codes.max() < self.words.codes:
            raise PacxError(
                f"codes from {codes.min()} to {codes.max()}: the image tokenizer has 0 "
                f"to {self.words.codes - 1}"
            )
        grid = codes.astype(np.int32).reshape(-1, self.grid, self.grid)
        shape = self.image_size, self.image_size, self.channels
        return self._batches("decode", run, (grid,), shape, np.float32)

    def log_likelihood(self, images, texts: Sequence[str]) -> np.ndarray:
        """log p(text | image) of every pair, (n, m) float32; [CLS] is given."""
        codes, text = self.codes(images), self._texts(texts)
        out = np.zeros((len(codes), len(text)), np.float32)
        for row, one in zip(out, codes, strict=True):
            row[:] = self._scored(np.broadcast_to(one, (len(text), len(one))), text)
        return out

    def text_log_likelihood(self, texts: Sequence[str]) -> np.ndarray:
        """log p(text) without an image, (m,) float32: text first, as in training."""
        text = self._texts(texts)
        return self._scored(np.zeros((len(text), self.grid**2), np.int32), text, True)

    def layers(self, images) -> np.ndarray:
        """Mean over the image's positions of each block's output, (n, depth, d)."""
        module, depth = self.module, self.module.transformer.depth

        def run(params, inputs):
            x = normalize(inputs[0], self._mean, self._std)
            return module.apply({"params": params}, x, method="each_layer")

        shape = depth, module.transformer.width
        images = self.pixels(images)
        return self._batches("layers", run, (images,), shape, np.float32)

    def _scored(self, codes, text, text_first: bool = False) -> np.ndarray:
        tokens = self._sequences(codes, text, text_first)
        first = np.argmax(tokens == self.words.start_id, axis=1)
        counted = np.asarray(self.words.kinds(tokens)) == TEXT
        counted &= np.arange(tokens.shape[1]) > first[:, None]

        def run(params, inputs):
            of = self.module.transformer, params["transformer"]
            return unified_generation.log_likelihood(*of, *inputs)

        return self._batches("score", run, (tokens, counted), (), np.float32)

    def _fill(self, tokens, wanted, prefix, way, k, temperature, top_p, seed):
        """`unified_generation.fill` or, at once, `fill_at_once`, of all rows."""
        how = {"k": k, "temperature": temperature, "top_p": top_p}

        def run(params, inputs):
            tokens, wanted, rows, seeds = inputs
            args = self.module.transformer, self.words, params["transformer"]
            more = how | {"key": jax.random.key(seeds[0]), "rows": rows}
            if way == "at once":
                return unified_generation.fill_at_once(*args, tokens, wanted, **more)
            more |= {"prefix": prefix}
            return unified_generation.fill(*args, tokens, wanted, **more)

        rows = np.arange(len(tokens), dtype=np.int32)
        inputs = tokens, wanted, rows, np.full(len(rows), seed, np.int32)
        name = ("fill", prefix, way, *how.values())
        return self._batches(name, run, inputs, tokens.shape[1:], np.int32)

    def _sequences(self, codes, text, text_first: bool) -> np.ndarray:
        first = np.full(len(codes), text_first)
        return np.array(self.words.sequences(codes, text, first))

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens (m, t) of texts; padding alone for one without a letter.

        Says how many are longer than the model takes, and are cut.
        """
        out, long = np.full((len(texts), self.length), self.words.pad_id, np.int32), 0
        for row, text in zip(out, texts, strict=True):
            if text.strip():
                row[:] = self.tokenizer.encode(text, self.length)
                long += len(self.tokenizer.ids(text)) > self.length - 2
        if long:
            print(
                f"{long} of {len(texts)} texts have more than the {self.length - 2} "
                "tokens that the model takes and are cut",
                file=sys.stderr,
            )
        return out

    def _hidden(self, n: int, hidden: np.ndarray | None) -> np.ndarray:
        k = self.grid**2
        hidden = np.zeros(k, bool) if hidden is None else np.asarray(hidden)
        if hidden.dtype != bool or hidden.shape not in ((k,), (n, k)):
            raise PacxError(
                f"hidden patches of dtype {hidden.dtype} and shape {hidden.shape}: "
                f"give bool ({k},) or ({n}, {k})"
            )
        return np.broadcast_to(hidden, (n, k))

    def _batches(self, name, run, arrays, shape, dtype) -> np.ndarray:
        if name not in self._jitted:
            self._jitted[name] = forward.on_mesh(run, self.mesh, self.dtype)
        rows = zip(*arrays, strict=True)
        given = self._jitted[name], self.params, rows, shape
        return forward.in_batches(*given, self.batch_size, self.mesh, dtype)


def load_generator(
    path: str | os.PathLike,
    words: str | os.PathLike,
    batch_size: int = 32,
    dtype: str = "float32",
) -> Generator:
    """Opens an exported CheXmix (or a finished run's workdir).

    Args:
      path: the folder.
      words: its tokenizer.json.
      batch_size, dtype: see `Generator`.

    Example:
      model = load_generator("runs/masked", "tokenizer.json")
      model.write(["patient.png"])  # ["no acute cardiopulmonary process"]
      lower = np.arange(196) >= 98
      model.paint(["patient.png"], lower)  # (1, 224, 224, 1) in [0, 1]

    Raises:
      PacxError: no such folder, another kind, or another tokenizer.
    """
    folder = model_folder.load(path, "unified")
    return Generator(folder, tokenizer.load(words), batch_size, dtype)
