"""Unreadable samples: listed once, replaced by others, and too many stop the run."""

from __future__ import annotations

import hashlib
import json
import pathlib
import threading
from typing import Any

from pacx_jax import files
from pacx_jax.errors import PacxError


class Quarantine:
    """Remembers unreadable samples and lists them in a file, one JSON line each.

    A line has `split`, `index`, `name` and `reason`, and in a mixture `set`. Every
    sample stands there once, sorted, however often the run was resumed and however many
    processes write: the file is merged and replaced as a whole, under
    `quarantine.lock` beside it.

    `max_share` is the share of a set's split that may be unreadable. One always may,
    unless the share is 0; what goes beyond raises PacxError. What others listed in the
    file counts too, for the pipeline's worker processes each have a copy of this.
    """

    def __init__(self, path: str | None, max_share: float = 0.01):
        if not 0 <= max_share <= 1:
            raise PacxError(f"quarantine share {max_share}: give a number in [0, 1]")
        self._path = pathlib.Path(path) if path else None
        self._max_share = max_share
        self._bad: dict[tuple[str, str, int], str] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        """How many different samples this process found unreadable."""
        return len(self._bad)

    def knows(self, source: Any, index: int) -> bool:
        """Whether sample `index` of this source was recorded by this process."""
        return self._key(source, index) in self._bad

    def record(self, source: Any, index: int, name: str, reason: str) -> None:
        """Lists a sample; PacxError when there are now too many of its split."""
        key = self._key(source, index)
        origin = _origin(source, index)[0]
        several = {"set": origin.set_name} if hasattr(origin, "set_name") else {}
        n = len(origin if several else source)
        with self._lock:
            if key in self._bad:
                return
            self._bad[key] = reason
            count = sum(other[:2] == key[:2] for other in self._bad)
            if self._path:
                line = {"split": key[0], "index": key[2], "name": name}
                count = max(count, self._write(line | several | {"reason": reason}))
        if count > allowed(self._max_share, n):
            of = f" of {several['set']}" if several else ""
            listed = f", listed in {self._path}" if self._path else ""
            raise PacxError(
                f"{count} unreadable samples of {n} in the {key[0]} split{of}, "
                f"more than the share {self._max_share:g} allows{listed}; the last: "
                f"{reason}"
            )

    def _key(self, source: Any, index: int) -> tuple[str, str, int]:
        source, index = _origin(source, index)
        split = getattr(source, "split", "")
        return split, getattr(source, "fingerprint", ""), int(index)

    def _write(self, line: dict[str, Any]) -> int:
        """Adds a line; returns how many of its set's split are listed now."""
        folder = self._path.parent
        with files.locked(folder / "quarantine.lock"):
            # The first reason stays: it was given where the sample itself was read.
            lines = {_order(x): x for x in (line, *self._read())}
            text = "".join(json.dumps(lines[key]) + "\n" for key in sorted(lines))
            files.write(self._path, text)
        whose = line["split"], line.get("set")
        return sum((x["split"], x.get("set")) == whose for x in lines.values())

    def _read(self) -> list[dict[str, Any]]:
        try:
            text = self._path.read_text(encoding="utf-8")
            lines = [files.parse_json(line) for line in text.splitlines()]
            if not all(map(_is_line, lines)):
                raise ValueError("a line without split, index, name and reason")
            return lines
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise PacxError(
                f"{self._path}: not a list of JSON lines ({error}); delete it"
            ) from None


def allowed(max_share: float, n: int) -> int:
    """How many of n samples may be unreadable: a share, but one in any case.

    A share of 0 allows none.
    """
    return max(1, int(max_share * n)) if max_share else 0


def replacement(seed: int, index: int, attempt: int, n: int) -> int:
    """The sample that stands in for an unreadable one, the same everywhere.

    A hash of (seed, index, attempt), so it depends on neither hosts nor threads.
    """
    digest = hashlib.sha256(f"{seed}/{index}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % n


def _origin(source: Any, index: int) -> tuple[Any, int]:
    """One sample, in whatever subset or mixture it is met: its source and number."""
    while hasattr(source, "origin"):
        source, index = source.origin(index)
    return source, index


def _is_line(line: Any) -> bool:
    kinds = {"split": str, "index": int, "name": str, "reason": str}
    return isinstance(line, dict) and all(
        isinstance(line.get(field), kind) for field, kind in kinds.items()
    )


def _order(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["split"], line["index"], line["name"]
