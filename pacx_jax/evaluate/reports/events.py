"""Images in TensorBoard's event files, without TensorBoard.

A file is records of a length (8 bytes), its checksum (4), the data, and theirs (4). A
long run has millions of scalars, which are short: their data are not looked at.
"""

from __future__ import annotations

import io
import mmap
import pathlib
import struct
from collections.abc import Iterator

import numpy as np
import PIL.Image
from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event

SHORTEST = 100  # bytes of a record with an image; that of a scalar has some 60
_HEAD, _TAIL = 12, 4


def images(folder: pathlib.Path) -> dict[str, tuple[int, np.ndarray]]:
    """The latest image of each tag in a folder's event files: (step, uint8 (h, w, 3)).

    What is damaged, such as the end of a file that is being written, is left out.
    """
    found: dict[str, tuple[int, float, bytes]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(file):
            try:
                event = Event.FromString(record)
            except DecodeError:
                continue
            for value in event.summary.value:
                data = value.image.encoded_image_string
                at = event.step, event.wall_time
                if data and at >= found.get(value.tag, (-1, 0.0))[:2]:
                    found[value.tag] = (*at, data)
    decoded = {tag: (step, _decoded(data)) for tag, (step, _, data) in found.items()}
    return {tag: (n, image) for tag, (n, image) in decoded.items() if image is not None}


def _records(file: pathlib.Path) -> Iterator[bytes]:
    """The data of the records that may hold an image."""
    if not file.stat().st_size:
        return
    with file.open("rb") as opened:
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
            at, end, length = 0, len(data), struct.Struct("<Q").unpack_from
            while at + _HEAD <= end:
                (size,) = length(data, at)
                start = at + _HEAD
                at = start + size + _TAIL
                if size >= SHORTEST and at <= end:
                    yield data[start : start + size]


def _decoded(data: bytes) -> np.ndarray | None:
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None
