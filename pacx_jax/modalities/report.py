"""Radiology reports as tokens, which a decoder learns to write (MVMAE-V2T).

No model embeds them. `config.data` says how they are read: `tokenizer`, a
tokenizer.json (see `pacx_jax.input.tokenizer`); `report_length`, tokens (300);
`report_sections`, of findings and impression (("impression",)).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from pacx_jax import modalities
from pacx_jax.errors import PacxError
from pacx_jax.input import reports, tokenizer

KIND = ""
REQUIRES = ("impression",)
ARRAYS = ("report_tokens",)
LENGTH, SECTIONS = 300, ("impression",)


class Reader(modalities.Reader):
    """Reads `report_tokens` and `report_present`, 1 for a study with a report."""

    @property
    def requires(self) -> tuple[str, ...]:
        """The sections that are read."""
        return tuple(self.preprocessing["sections"])

    @property
    def fingerprint(self) -> str:
        """The tokenizer's: a run goes on with the same one alone."""
        return self.preprocessing["sha256"]

    def load(self, example: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
        """The arrays of one example."""
        arrays = load(example, name, self.preprocessing)
        present = arrays["report_tokens"][0] != self.preprocessing["pad_id"]
        return arrays | {"report_present": np.float32(present)}


def reader(data: Any) -> Reader:
    """The reader of the reports that `config.data` describes; see `settings`."""
    return Reader("report", sys.modules[__name__], settings(data), optional=True)


def settings(data: Any) -> dict[str, Any]:
    """The tokenizer and its special tokens, and how reports are read.

    Raises:
      PacxError: no tokenizer, an unusable one, or fields that make no sense.
    """
    path = str(getattr(data, "tokenizer", "") or "")
    if not path:
        raise PacxError(
            "config.data.tokenizer is empty: give a tokenizer.json, such as one of "
            "pacx tokenizer"
        )
    length = int(getattr(data, "report_length", LENGTH))
    if length < 3:
        raise PacxError(f"config.data.report_length {length}: give at least 3 tokens")
    wanted = reports.sections(getattr(data, "report_sections", SECTIONS))
    split = getattr(data, "train_split", "train")
    found = tokenizer.load(path, split, getattr(data, "stage", ""))
    return {
        "tokenizer": found.path,
        "sha256": found.sha256,
        "vocab_size": found.vocab_size,
        "pad_id": found.pad_id,
        "unk_id": found.unk_id,
        "start_id": found.start_id,
        "end_id": found.end_id,
        "length": length,
        "sections": list(wanted),
    }


def missing(example: Mapping[str, Any]) -> bool:
    """Whether the study has no section of a report; `Reader` asks for some alone."""
    return not reports.text_of(example, reports.SECTIONS)


def load(
    example: Mapping[str, Any], name: str, preprocessing: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """report_tokens int32 (t,): [CLS] text [SEP], padded; padding alone if missing."""
    del name
    length = preprocessing["length"]
    text = reports.text_of(example, preprocessing["sections"])
    if not text:
        pad = np.full(length, preprocessing["pad_id"], np.int32)
        return {"report_tokens": pad}
    found = opened(preprocessing["tokenizer"], preprocessing["sha256"])
    return {"report_tokens": found.encode(text, length)}


@functools.lru_cache(maxsize=8)
def opened(path: str, sha256: str) -> tokenizer.Tokenizer:
    """The tokenizer of `settings`, read once a process.

    Raises:
      PacxError: the file changed since.
    """
    found = tokenizer.load(path)
    if found.sha256 != sha256:
        raise PacxError(f"{path}: changed while the run went on; start it again")
    return found
