"""What comes in: the body of a request, within limits, and the images in it.

Every refusal is an HTTPException with one line: 400 no images, 408 too slow, 413 too
many bytes, pixels or files, 415 no JPEG, PNG or DICOM, 422 damaged or not an X-ray that
can be read. Bodies go to temporary files, so that memory holds what is decoded alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import math
import tempfile
from typing import BinaryIO, NamedTuple

import numpy as np
import PIL.Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from pacx_jax import files
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import dicom_pixels
from pacx_jax.input import images as imageio

_IN_MEMORY = 2**20  # bytes of an upload; more go to a temporary file


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many requests there may be.

    Attributes:
      bytes: of a request's body.
      pixels: of one image, rows x columns.
      images: files of a request.
      requests: that are read or computed at a time; more get 429.
      seconds: from the end of the upload to the answer; later is 504.
      upload_seconds: for the body to arrive; later is 408.
    """

    bytes: int = 64 * 2**20
    pixels: int = dicom_pixels.MAX_PIXELS
    images: int = 16
    requests: int = 32
    seconds: float = 30
    upload_seconds: float = 30


class Upload(NamedTuple):
    """One file of a request; its name is the client's."""

    name: str
    file: BinaryIO


def limited(receive: Receive, limits: Limits) -> Receive:
    """`receive` that raises for too many bytes, and at the end of the upload's time."""
    count, loop = 0, asyncio.get_running_loop()
    end = loop.time() + limits.upload_seconds

    async def read() -> Message:
        nonlocal count
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the upload took more than {limits.upload_seconds:g} s"
            ) from None
        count += len(message.get("body", b""))
        if count > limits.bytes:
            raise HTTPException(413, _too_long(limits))
        return message

    return read


def check_headers(request: Request, limits: Limits) -> None:
    """Refuses, by its headers, a body that need not be read."""
    if encoding := request.headers.get("content-encoding", ""):
        raise HTTPException(
            415, f"Content-Encoding {encoding[:40]!r}: send the files as they are"
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.bytes:
        raise HTTPException(413, _too_long(limits))


def _too_long(limits: Limits) -> str:
    return (
        f"the request is longer than {limits.bytes} bytes: send fewer or smaller files"
    )


async def read(request: Request, limits: Limits) -> list[Upload]:
    """The files of a multipart form, or the one file that is the body.

    Raises:
      HTTPException: 400, 408 or 413.
    """
    check_headers(request, limits)
    request = Request(request.scope, limited(request.receive, limits))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        # Counted below: the parser's own refusal would be no 413.
        form = await request.form(max_files=1000, max_fields=8)
        found = [
            Upload(value.filename or f"image {i + 1}", value.file)
            for i, (_, value) in enumerate(form.multi_items())
            if not isinstance(value, str)
        ]
    else:
        body = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # closed with the request
        async for chunk in request.stream():
            body.write(chunk)
        found = [Upload("image", body)] if body.tell() else []
        body.seek(0)
    if not found:
        raise HTTPException(
            400,
            "no image in the request: send files as multipart/form-data, or one file "
            "as the body",
        )
    if len(found) > limits.images:
        raise HTTPException(413, f"a request may have {limits.images} images")
    return found


def decode(upload: Upload, limits: Limits) -> np.ndarray:
    """uint8 (h, w[, 3]) of one upload; for a thread, since it may take a second.

    Raises:
      HTTPException: 413, 415, 422, or 501 where the extra for DICOM is missing.
    """
    upload.file.seek(0)
    data, name = upload.file.read(), one_line(upload.name, 80)
    if not data:
        raise HTTPException(422, f"{name}: the file is empty")
    if not (dicom_pixels.is_dicom(data) or data[:2] == b"\xff\xd8" or _png(data)):
        other = files.other_kind(data) or "not a JPEG, PNG or DICOM image"
        raise HTTPException(415, f"{name}: {one_line(other)}")
    if (found := math.prod(_size(data))) > limits.pixels:
        raise HTTPException(
            413, f"{name}: {found} pixels, the limit is {limits.pixels}; shrink it"
        )
    try:
        return imageio.decode(data, name)
    except PacxError as error:
        status = 501 if isinstance(error.__cause__, ImportError) else 422
        raise HTTPException(status, str(error)) from None


def _png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def _size(data: bytes) -> tuple[int, ...]:
    """Rows and columns by the header; (0,) where it tells none, for `decode` to say."""
    try:
        if dicom_pixels.is_dicom(data):
            return dicom_pixels.size(data)
        if _png(data):  # PIL would refuse to open a large one
            if data[12:16] != b"IHDR":
                return (0,)
            return tuple(int.from_bytes(data[i : i + 4]) for i in (16, 20))
        with PIL.Image.open(io.BytesIO(data), formats=imageio.FORMATS) as image:
            return image.size
    except PIL.Image.DecompressionBombError:
        return (2**31,)
    except Exception:  # damaged in any way: decoding it names what is wrong
        return (0,)
