"""Tokenizers of reports.

`train_on` writes a WordPiece tokenizer.json as the `tokenizers` library does, the same
for the same reports, and beside it tokenizer.json.pacx.json, which says what it was
trained on. Any other tokenizer.json with [PAD], [UNK], [CLS] and [SEP] serves too, such
as BERT's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pacx_jax import files
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import reports
from pacx_jax.stores import staging
from pacx_jax.stores.failures import Missing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIDECAR = ".pacx.json"  # after the tokenizer's name
LEAST = 1000  # size of a vocabulary below which the command asks for more
_HELD_OUT = ("val", "valid", "validate", "validation", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.json and its special tokens.

    Attributes:
      path: of the file.
      sha256: of its bytes.
      vocab_size: the largest id and one.
      pad_id, unk_id, start_id, end_id: of [PAD], [UNK], [CLS] and [SEP].
      inner: the library's own object.
    """

    path: str
    sha256: str
    vocab_size: int
    pad_id: int
    unk_id: int
    start_id: int
    end_id: int
    inner: Any = dataclasses.field(repr=False, compare=False)

    def ids(self, text: str) -> list[int]:
        """The ids of a text alone."""
        return self.inner.encode(text, add_special_tokens=False).ids

    def encode(self, text: str, length: int) -> np.ndarray:
        """[CLS] text [SEP] and padding, int32 (length,); a longer text is cut.

        The [SEP] of a text that was cut stands too, as in BERT's own.
        """
        found = [self.start_id, *self.ids(text)[: length - 2], self.end_id]
        out = np.full(length, self.pad_id, np.int32)
        out[: len(found)] = found
        return out

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids up to the first [SEP], without special tokens."""
        ids = [int(i) for i in ids]
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return self.inner.decode(ids[:end], skip_special_tokens=True)


def load(path: str | os.PathLike, train_split: str = "", stage: str = "") -> Tokenizer:
    """Reads a tokenizer.json, which may lie in a bucket.

    Args:
      train_split: the split that the run trains on; "" asks nothing.
      stage: folder of local copies, see `staging.local`.

    Raises:
      PacxError: no such file, no tokenizer, one without the special tokens, or one that
        was trained on another split than `train_split`.
    """
    local = staging.local(path, stage)
    data = files.read_bytes(local)
    digest = hashlib.sha256(data).hexdigest()
    make = "train one by pacx tokenizer"
    if other := files.other_kind(data):
        raise PacxError(f"{path}: no tokenizer.json but {other}")
    try:
        inner = _library().Tokenizer.from_str(data.decode())
        inner.encode("\u2603")  # of a letter that it lacks, where [UNK] is asked for
    except Exception as error:  # the library raises nothing more precise
        raise PacxError(
            f"{path}: no tokenizer.json ({one_line(error, 120)}): give one that the "
            f"`tokenizers` library wrote, or {make}"
        ) from None
    ids = [inner.token_to_id(token) for token in SPECIAL]
    if None in ids:
        lacks = [s for s, i in zip(SPECIAL, ids, strict=True) if i is None]
        raise PacxError(
            f"{path}: a tokenizer without {', '.join(lacks)}: give one that has these "
            f"tokens, as BERT's has, or {make}"
        )
    inner.no_truncation()
    inner.no_padding()
    size = 1 + max(inner.get_vocab(with_added_tokens=True).values())
    check_sidecar(path, digest, train_split, stage)
    pad, unk, start, end = ids
    return Tokenizer(str(local), digest, size, pad, unk, start, end, inner)


def check_sidecar(
    path: str | os.PathLike, sha256: str, train_split: str, stage: str = ""
) -> None:
    """PacxError for a vocabulary of reports that are not to be trained on.

    A tokenizer without a sidecar is somebody else's, and passes.
    """
    try:
        sidecar = staging.local(f"{path}{SIDECAR}", stage)
    except Missing:
        return
    if not sidecar.is_file():
        return
    about = files.read_own_json(sidecar, "train the tokenizer again")
    if about.get("sha256") != sha256:
        raise PacxError(
            f"{sidecar}: says what another tokenizer than {path} was trained on: train "
            "it again, or delete this file if the tokenizer is not of this program"
        )
    split = str(about.get("split", ""))
    if train_split and split != train_split:
        raise PacxError(
            f"{path}: a vocabulary trained on {split} reports (refused): train one on "
            f"the {train_split} split by pacx tokenizer"
        )


def train(texts: Sequence[str], vocab_size: int):
    """A WordPiece tokenizer of texts, as the library's own object.

    Letters are lowered and lose their accents, and words are split at blanks and
    punctuation, as in BERT's. A word's part counts if it occurs twice.

    Raises:
      PacxError: no texts, or a vocabulary too small for the special tokens.
    """
    if not texts:
        raise PacxError(
            "no report to train a tokenizer on: check --sections, --split and the data"
        )
    if vocab_size < LEAST:
        raise PacxError(f"--vocab_size={vocab_size}: give at least {LEAST}")
    library = _library()

    def blank(**vocabulary):
        made = library.Tokenizer(
            library.models.WordPiece(**vocabulary, unk_token=SPECIAL[1])
        )
        made.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        made.decoder = library.decoders.WordPiece()
        return made

    made = blank()
    letters = sorted(set("".join(map(made.normalizer.normalize_str, texts))))
    letters = [c for c in letters if not c.isspace()]
    # The library numbers letters within words in the order of a hash table, and breaks
    # ties by these numbers. Named first, they are the same in every process.
    named = [*SPECIAL, *letters, *(f"##{c}" for c in letters)]
    if len(named) >= vocab_size:
        raise PacxError(
            f"--vocab_size={vocab_size}: the reports have {len(letters)} letters and "
            f"signs, so give more than {len(named)}"
        )
    trainer = library.trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=named,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    ordered = sorted(made.get_vocab().items(), key=lambda item: item[1])
    made = blank(vocab=dict(ordered))
    made.add_special_tokens(list(SPECIAL))
    return made


def coverage(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> dict[str, Any]:
    """How texts look in tokens.

    Returns:
      `tokens` (mean of a text), `unknown` (share of [UNK]) and `cut` (texts of more
      than `length` tokens with their two special ones).
    """
    total = unknown = cut = 0
    for text in texts:
        ids = tokenizer.ids(text)
        total += len(ids)
        unknown += ids.count(tokenizer.unk_id)
        cut += len(ids) > length - 2
    return {
        "tokens": total / max(len(texts), 1),
        "unknown": unknown / max(total, 1),
        "cut": cut,
    }


def train_on(
    source, target: str, vocab_size: int, sections: Sequence[str]
) -> tuple[Tokenizer, reports.Reports]:
    """Trains a tokenizer on a source's reports and writes it and its sidecar."""
    found = reports.read(source, sections)
    made = train(found.texts, vocab_size)
    text = made.to_str(pretty=True)
    about = {
        "split": source.split,
        "fingerprint": source.fingerprint,
        "namespace": source.namespace,
        "sections": list(sections),
        "reports": len(found.texts),
        "vocab_size": made.get_vocab_size(),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    files.write_json(f"{target}{SIDECAR}", about)
    files.write(target, text)
    return load(target, source.split), found


def check_split(split: str) -> None:
    """PacxError for a split that is held out."""
    if split.lower() in _HELD_OUT:
        raise PacxError(
            f"--split={split}: a vocabulary trained on {split} reports (refused): give "
            "the split that runs train on"
        )


def _library():
    """The `tokenizers` package, on one thread: worker processes fork."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
