"""The few elements of a DICOM file that its image needs, read one by one.

pydicom finds the elements; their values are parsed here, because pydicom warns of
values that deviate from the standard, once for each, and says them. Nothing but the
elements asked for is parsed, so no name or date of a patient is looked at.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from pacx_jax.errors import PacxError

_PREAMBLE = 128
_PIXEL_DATA = 0x7FE00010
# What a file without a preamble begins with: an element of file meta information, or
# one of the first elements of an image, with its VR or with the length of its value.
_FIRST = re.compile(
    rb"\x02\x00[\x00\x01]\x00(UL\x04\x00|OB\x00\x00|[\x02\x04]\x00\x00\x00)"
    rb"|\x08\x00(\x00\x00(UL\x04\x00|\x04\x00\x00\x00)"
    rb"|\x05\x00(CS.\x00|.\x00\x00\x00)|\x08\x00(CS.\x00|.\x00\x00\x00)"
    rb"|\x16\x00(UI.\x00|.\x00\x00\x00))",
    re.DOTALL,
)
_TOP_LEVEL = (
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit WindowCenter WindowWidth VOILUTFunction RescaleIntercept "
    "RescaleSlope ModalityLUTSequence VOILUTSequence PresentationLUTShape PixelData"
).split()


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file: DICM at 128, or none but a first element."""
    start = data[_PREAMBLE : _PREAMBLE + 4]
    return bytes(start) == b"DICM" or bool(_FIRST.match(bytes(data[:8])))


class Elements:
    """Elements of a data set by keyword, with errors that name file and element.

    Attributes:
      name: what messages call the file.
    """

    def __init__(self, dataset: Any, name: str):
        self._dataset, self.name = dataset, name

    def error(self, keyword: str, value: Any, reason: str) -> PacxError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return PacxError(f"{self.name}: DICOM {keyword} {shown}: {reason}")

    def raw(self, keyword: str) -> bytes:
        """The bytes of a value; b"" when it is absent or empty."""
        element = self._element(keyword)
        value = element.value if element is not None else b""
        if value and not isinstance(value, bytes):
            raise self.error(keyword, type(value).__name__, "not a plain value")
        return value or b""

    def vr(self, keyword: str) -> str | None:
        """The value representation that the file states, if it does."""
        element = self._element(keyword)
        return None if element is None else element.VR

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A US value; PacxError when it is neither there nor has a default."""
        value = self.raw(keyword)
        if not value and default is not None:
            return default
        if not value:
            raise PacxError(
                f"{self.name}: DICOM {keyword} is absent: replace or delete the file"
            )
        if len(value) != 2:
            raise self.error(
                keyword, value, "not one number of 16 bits; replace or delete the file"
            )
        return int.from_bytes(value, "little")

    def text(self, keyword: str, default: str = "") -> str:
        """A CS value without its padding."""
        value = self.raw(keyword).decode("ascii", "replace")
        return value.strip("\0 ") or default

    def numbers(self, keyword: str) -> list[float]:
        """DS or IS values; [] when absent."""
        text = self.text(keyword)
        try:
            values = [float(part) for part in text.split("\\")] if text else []
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise self.error(keyword, text, "not a number; mend or delete the file")
        return values

    def number(self, keyword: str, default: float) -> float:
        return (self.numbers(keyword) or [default])[0]

    def first_item(self, keyword: str) -> Elements | None:
        """The first item of a sequence, or None."""
        if self._element(keyword) is None:
            return None
        try:
            items = self._dataset[keyword].value
            return Elements(items[0], self.name) if len(items) else None
        except Exception as error:  # hostile bytes make pydicom raise almost anything
            raise self.error(keyword, _one_line(error), "damaged sequence") from None

    def _element(self, keyword: str) -> Any:
        from pydicom.datadict import tag_for_keyword

        # An empty value would else be converted, by a VR that may be nonsense.
        return self._dataset.get_item(tag_for_keyword(keyword), keep_deferred=True)


def read(data: bytes, name: str) -> tuple[str, Elements]:
    """The transfer syntax's UID and the elements that an image needs.

    A file without meta information has the UID of what its first element looks like.

    Raises:
      PacxError: pydicom is not installed, or the bytes are not those of a DICOM file.
    """
    try:
        from pydicom import filereader
        from pydicom.datadict import tag_for_keyword
    except ImportError as error:
        raise PacxError(
            f"{name}: a DICOM file, which needs the extra dicom ({error}): "
            "pip install 'pydicom>=3' 'pylibjpeg[all]>=2'"
        ) from None
    file = io.BytesIO(data)
    if data[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        file.seek(_PREAMBLE + 4)
    try:
        meta = filereader.read_dataset(file, False, True, stop_when=_after_meta)
        syntax = Elements(meta, name).text("TransferSyntaxUID")
        if not syntax:
            syntax = _guess_syntax(data[file.tell() : file.tell() + 8])
        if syntax in UNREADABLE:  # before pydicom inflates them, without a limit
            raise Elements(meta, name).error(
                "TransferSyntaxUID",
                syntax,
                f"{UNREADABLE[syntax]} is not supported; convert the file to Explicit "
                "VR Little Endian, for instance with dcmconv +te of DCMTK",
            )
        dataset = filereader.read_dataset(
            file,
            syntax == IMPLICIT,
            True,
            stop_when=_after_pixels,
            specific_tags=[tag_for_keyword(keyword) for keyword in _TOP_LEVEL],
        )
    except PacxError:
        raise
    except Exception as error:  # hostile bytes make pydicom raise almost anything
        raise PacxError(
            f"{name}: unreadable DICOM file ({_one_line(error)}); replace or delete it"
        ) from None
    return syntax, Elements(dataset, name)


IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
UNREADABLE = {
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian, which is retired,",
}


def _guess_syntax(first: Sequence[int]) -> str:
    vr = bytes(first[4:6])
    return EXPLICIT if vr.isalpha() and vr.isupper() else IMPLICIT


def _after_meta(tag: Any, vr: str | None, length: int) -> bool:
    del vr, length
    return tag >> 16 != 2


def _after_pixels(tag: Any, vr: str | None, length: int) -> bool:
    del vr, length
    return tag > _PIXEL_DATA


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
