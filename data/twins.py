"""Identical and near-identical images, found by hashes in sets of any size.

Identical: the decoded pixels have one sha256 (three equal channels count as grey), so
that another file format without loss is the same image, and another size is not.

Near-identical: both of
  - 64-bit DCT perceptual hashes within a Hamming distance of 7. The hash is that of
    Zauner 2010: grey, shrunk to 32x32 by area, DCT, the 8x8 coefficients after the
    first row and column, 1 where above their median;
  - detail that correlates by at least 0.96: their 16x16 grey thumbnails without the
    4x4 lowest DCT coefficients, which are much the same in all chests.
It finds copies that were shrunk, compressed, or moderately changed in brightness; not
cropped, mirrored, inverted or histogram-equalised ones (data/README.md has the rates).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
import scipy.fft
import tqdm

DISTANCE = 7  # bits; two rounds of the bands below find no more than that
CORRELATION = 0.96
_THUMB = 16
_COARSE = 4  # coefficients a side that are left out of the detail
_FLAT = 2.0  # grey levels of standard deviation: below, a hash is that of noise
_BANDS = 4  # of 16 bits: of 7 differing bits some band has at most one
_PAIRS_AT_ONCE = 1 << 21

DIGEST = np.dtype(
    [
        ("pixels", np.uint64, 2),  # of the sha256
        ("phash", np.uint64),
        ("thumb", np.uint8, _THUMB * _THUMB),
        ("flat", bool),
    ]
)


def digest(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3) -> one DIGEST, 281 bytes."""
    grey = image
    if image.ndim == 3:
        equal = (image == image[..., :1]).all()
        grey = image[..., 0] if equal else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        image = np.ascontiguousarray(grey) if equal else image
    sha = hashlib.sha256(repr(image.shape).encode())
    sha.update(np.ascontiguousarray(image))
    small = cv2.resize(
        np.ascontiguousarray(grey), (32, 32), interpolation=cv2.INTER_AREA
    )
    low = cv2.dct(small.astype(np.float32))[1:9, 1:9].ravel()
    out = np.zeros((), DIGEST)
    out["pixels"] = np.frombuffer(sha.digest()[:16], np.uint64)
    out["phash"] = np.packbits(low > np.median(low)).view(np.uint64)[0]
    side = (_THUMB, _THUMB)
    out["thumb"] = cv2.resize(small, side, interpolation=cv2.INTER_AREA).ravel()
    out["flat"] = out["thumb"].std() < _FLAT
    return out


def identities(digests: np.ndarray) -> np.ndarray:
    """DIGEST (n,) -> int (n,), the same for images of identical pixels."""
    words = digests["pixels"]
    order = np.lexsort((words[:, 1], words[:, 0]))
    new = (words[order[1:]] != words[order[:-1]]).any(1)
    ids = np.zeros(len(words), np.int64)
    ids[order[1:]] = np.cumsum(new)
    return ids


def near_pairs(
    digests: np.ndarray,
    cells: np.ndarray,
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
) -> np.ndarray:
    """Pairs of near-identical images that lie in different cells.

    Multi-index hashing (Norouzi et al. 2012): the hashes are cut into 4 bands of 16
    bits, and only pairs that differ by at most one bit in some band are compared, which
    misses none within 7 bits. Flat images have no neighbours.

    Args:
      digests: DIGEST (n,).
      cells: int (n,), such as the number of the image's split.
      distance: at most so many bits, 0 to 7.
      correlation: of the thumbnails' detail, at least.

    Returns:
      int (k, 2), indices with cells[i] < cells[j], each pair once, sorted.
    """
    if not 0 <= distance <= DISTANCE:
        raise ValueError(f"distance {distance}: give 0 to {DISTANCE}")
    rows = np.flatnonzero(~digests["flat"])
    hashes, cells = digests["phash"][rows], cells[rows].astype(np.int64)
    flips = [0] if distance < _BANDS else [0] + [1 << bit for bit in range(16)]
    bar = tqdm.tqdm(total=_BANDS * len(flips), desc="comparing", unit="round")
    found = []
    for band in range(_BANDS):
        keys = ((hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)).astype(np.int64)
        for flip in flips:
            for i, j in _candidates(keys, cells, flip):
                close = np.bitwise_count(hashes[i] ^ hashes[j]) <= distance
                found.append(np.stack([rows[i[close]], rows[j[close]]], 1))
            found = [np.unique(np.concatenate(found), axis=0)] if found else []
            bar.update()
    bar.close()
    pairs = found[0] if found else np.zeros((0, 2), np.int64)
    alike = [
        _correlation(digests["thumb"][chunk[:, 0]], digests["thumb"][chunk[:, 1]])
        for chunk in np.array_split(pairs, len(pairs) // 65536 + 1)
    ]
    return pairs[np.concatenate(alike) >= correlation]


def _candidates(
    keys: np.ndarray, cells: np.ndarray, flip: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index arrays i, j with keys[j] == keys[i] ^ flip and cells[j] > cells[i]."""
    width = int(cells.max(initial=0)) + 2
    order = np.argsort(keys * width + cells, kind="stable")
    ranked = (keys * width + cells)[order]
    wanted = (keys ^ flip) * width
    start = np.searchsorted(ranked, wanted + cells + 1)
    count = np.searchsorted(ranked, wanted + width) - start
    end = np.cumsum(count)
    first, n = 0, len(keys)
    while first < n:  # as many rows at a time as have _PAIRS_AT_ONCE partners
        done = end[first - 1] if first else 0
        last = int(np.searchsorted(end, done + _PAIRS_AT_ONCE, side="right"))
        last = max(last, first + 1)
        rows = np.arange(first, last)
        i = np.repeat(rows, count[first:last])
        offset = np.arange(len(i)) - np.repeat(
            end[rows] - count[rows] - done, count[rows]
        )
        if len(i):
            yield i, order[start[i] + offset]
        first = last


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations of the thumbnails' detail, uint8 (n, 256) twice -> (n,)."""
    a, b = _detail(a), _detail(b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.einsum("np,np->n", a, b) / np.maximum(norms, 1e-9)


def _detail(thumbs: np.ndarray) -> np.ndarray:
    square = thumbs.reshape(-1, _THUMB, _THUMB).astype(np.float32)
    coefficients = scipy.fft.dctn(square, axes=(1, 2), norm="ortho")
    coefficients[:, :_COARSE, :_COARSE] = 0
    return coefficients.reshape(thumbs.shape)
