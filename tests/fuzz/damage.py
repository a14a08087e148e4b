"""Hypothesis strategies: valid files, damaged as disks, networks and enemies do it."""

from __future__ import annotations

import copy
import json
import re
import struct
from collections.abc import Callable, Sequence

import hypothesis.strategies as st

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 60000, 65535, 2**31 - 1)
NUMBERS += (2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1)
TEXTS = ("", " ", "0", "-1", "1e999", "nan", "NaN", "1000000000000", "9" * 400, "\0")
TEXTS += ("../../../etc/passwd", "/etc/passwd", "..", "~", "http://127.0.0.1/x", "::")
TEXTS += ("a" * 300, "\u0663", "\u00b2", '"', '"a\nb"', "=1+1", "%s%n", "{0.__class__}")
VALUES = (None, True, -1, 0, 0.5, 2**31, 2**63, 10**30, 1e300, float("nan"))
VALUES += (float("inf"), [], {}, [[]], [None], {"a": []}, [1] * 99, "\ud800", *TEXTS)
_TOKEN = re.compile(rb"[^\s,|:;/()\"{}\[\]]+")


@st.composite
def of_bytes(draw, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds after a few changes of bytes, at any place."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(("set", "number", "number", "splice", "cut")))
        # Headers stand first: half of the changes are made there.
        most = min(len(data), draw(st.sampled_from((128, 10**9))))
        at = draw(st.integers(0, max(most - 1, 0)))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            form = draw(st.sampled_from(("<H", ">H", "<I", ">I", "<Q", ">Q")))
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * struct.calcsize(form))
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == "splice":
            start, n = draw(st.integers(0, len(data))), draw(st.integers(0, 64))
            data[at : at + draw(st.integers(0, 8))] = data[start : start + n]
        else:
            del data[at + draw(st.integers(0, 64)) :]
    return bytes(data)


@st.composite
def of_text(draw, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with words replaced, or lines doubled, moved and lost."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("word", "word", "word", "line", "bytes")))
        if kind == "bytes":
            data = draw(of_bytes([data]))
            continue
        if kind == "line":
            lines = data.splitlines(keepends=True) or [b""]
            at = draw(st.integers(0, len(lines) - 1))
            lines[at : at + draw(st.integers(0, 1))] = [lines[at]] * draw(
                st.integers(0, 2)
            )
            data = b"".join(lines)
            continue
        words = list(_TOKEN.finditer(data))
        if not words:
            continue
        word = words[draw(st.integers(0, len(words) - 1))]
        new = draw(st.sampled_from(TEXTS)).encode("utf-8")
        data = data[: word.start()] + new + data[word.end() :]
    return data


@st.composite
def of_tree(draw, tree) -> object:
    """A JSON value with one to three of its parts replaced, lost or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        if not places:
            return draw(st.sampled_from(VALUES))
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        kind = draw(st.sampled_from(("set", "set", "set", "lose", "rename")))
        if kind == "set":
            parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif kind == "lose":
            del parent[key]
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(TEXTS))] = parent.pop(key)
    return tree


def _places(tree):
    if isinstance(tree, dict):
        items = list(tree.items())
    else:
        items = list(enumerate(tree)) if isinstance(tree, list) else []
    for key, value in items:
        yield tree, key
        yield from _places(value)


def of_json(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the JSON files changed in its values, its bytes, or nested too deeply."""
    trees = [json.loads(seed) for seed in seeds]
    changed = st.sampled_from(trees).flatmap(of_tree)
    deep = st.sampled_from((b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"[]"))
    return st.one_of(
        changed.map(lambda tree: json.dumps(tree).encode()),
        changed.map(lambda tree: json.dumps(tree).encode()),
        of_text(seeds),
        st.one_of(deep, of_bytes(seeds)),
    )


def of_json_lines(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """The first line changed as JSON, or the whole as text."""
    first = [seed.splitlines()[0] for seed in seeds]
    rest = b"\n" + b"\n".join(seeds[0].splitlines()[1:]) + b"\n"
    return st.one_of(of_json(first).map(lambda x: x + rest), of_text(seeds))


def of_safetensors(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """The header changed as JSON with its length put right, or any bytes."""

    def parts(seed: bytes) -> tuple[dict, bytes]:
        n = int.from_bytes(seed[:8], "little")
        return json.loads(seed[8 : 8 + n]), seed[8 + n :]

    def joined(tree, body: bytes) -> bytes:
        header = json.dumps(tree).encode()
        return len(header).to_bytes(8, "little") + header + body

    def changed(seed: bytes):
        tree, body = parts(seed)
        return of_tree(tree).map(lambda tree: joined(tree, body))

    return st.one_of(st.sampled_from(seeds).flatmap(changed), of_bytes(seeds))


Damage = Callable[[Sequence[bytes]], st.SearchStrategy[bytes]]
