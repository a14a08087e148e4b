"""What a JPEG 2000 codestream asks of its decoder, read from its headers (T.800 A).

OpenJPEG makes a structure for each code block and precinct before it decodes anything:
2 kB that name precincts of one pixel took 1.2 GiB for 1,500 x 1,500 pixels, and code
blocks of 4 x 4 took 2.4 GiB for 10,000 x 10,000. It also gives zeros for tiles that are
not there.
"""

from __future__ import annotations

import math
import struct

# Code blocks and precincts: 50 million pixels have 48,828 blocks of 32 x 32, the least
# that encoders use; each takes up to 540 bytes.
LARGEST = 2**18
_SOT, _SOD, _EOC, _COD, _COC = 0xFF90, 0xFF93, 0xFFD9, 0xFF52, 0xFF53


def check(frame: bytes, rows: int, columns: int, tiles: int) -> None:
    """Refuses a codestream that asks for too much, or does not hold all its tiles.

    Args:
      frame: the codestream, from its first marker.
      rows, columns: of the one component.
      tiles: how many there must be.

    Raises:
      ValueError: what is wrong, also where a header is damaged.
    """
    seen, at = set(), 2
    while at + 2 <= len(frame):
        (marker,) = struct.unpack_from(">H", frame, at)
        if marker == _EOC:
            break
        length = _length(frame, at)
        if marker == _SOT:
            tile, size = struct.unpack_from(">HI", frame, at + 4)
            seen.add(tile)
            end = at + size if size else len(frame)
            if not at + 12 <= end <= len(frame):
                raise ValueError("JPEG 2000 tile cut off")
            _tile_header(frame, at + 2 + length, end, rows * columns)
            at = end
            continue
        _coding(frame, marker, at, rows * columns)
        at += 2 + length
    if seen != set(range(tiles)):
        raise ValueError(f"JPEG 2000 with {len(seen)} of {tiles} tiles: cut off")


def _tile_header(frame: bytes, at: int, end: int, pixels: int) -> None:
    while True:
        marker = int.from_bytes(frame[at : at + 2], "big")
        if marker == _SOD:
            return
        if at >= end:
            raise ValueError("JPEG 2000 tile without data")
        _coding(frame, marker, at, pixels)
        at += 2 + _length(frame, at)


def _length(frame: bytes, at: int) -> int:
    marker, length = struct.unpack_from(">2H", frame, at)
    if marker < 0xFF00 or length < 2:
        raise ValueError(f"JPEG 2000 marker {marker:04X}")
    return length


def _coding(frame: bytes, marker: int, at: int, pixels: int) -> None:
    """Counts the code blocks and precincts that a COD or COC segment makes."""
    if marker not in (_COD, _COC):
        return
    # Style, then after progression, layers and transform (COD) the decomposition.
    style = frame[at + (4 if marker == _COD else 5)]
    start = at + (9 if marker == _COD else 6)
    levels, width, height = frame[start : start + 3]
    blocks = pixels / 2.0 ** (width + height + 4)
    precincts = 0.0
    if style & 1:
        for i, size in enumerate(frame[start + 5 : start + 6 + levels]):
            of_level = pixels / 4.0 ** max(levels - i, 0)
            precincts += math.ceil(of_level / 2.0 ** ((size & 15) + (size >> 4)))
    if levels > 32 or blocks > LARGEST or precincts > LARGEST:
        raise ValueError(
            f"JPEG 2000 with {blocks:.0f} code blocks and {precincts:.0f} precincts; "
            f"at most {LARGEST} are read"
        )
