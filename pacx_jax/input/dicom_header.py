"""Reads the few elements of a DICOM file that its image needs.

pydicom finds the elements. Their values are parsed here, because pydicom warns about
every value that deviates from the standard. No other element is parsed, so the
patient's name and dates are never read. All errors are ValueErrors.
"""

from __future__ import annotations

import io
import re
from typing import Any

NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # implicit and explicit VR
RLE = "1.2.840.10008.1.2.5"
JPEG = [f"1.2.840.10008.1.2.4.{i}" for i in (50, 51, 57, 70, 80, 81, 90, 91)]
_KEYWORDS = (
    "SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns "
    "BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "PixelPaddingRangeLimit WindowCenter WindowWidth VOILUTFunction RescaleIntercept "
    "RescaleSlope ModalityLUTSequence VOILUTSequence PresentationLUTShape PixelData"
).split()
# A file without a preamble begins with file meta information, or with one of the first
# elements of an image: its tag, then its VR or the length of its value.
_FIRST = re.compile(rb"(?s)[\2\10]\0[\0\1\5\10\26]\0(UL|OB|CS|UI|.\0\0\0)")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?")


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file: DICM at 128, or a known first element."""
    return bytes(data[128:132]) == b"DICM" or bool(_FIRST.match(bytes(data[:8])))


def read(data: bytes) -> tuple[str, Any]:
    """The UID of the transfer syntax, and a pydicom data set of the image's elements."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID_dictionary

    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    # Without meta information the first element tells, by having a VR or none.
    vr = data[file.tell() + 4 : file.tell() + 6]
    guess = NATIVE[vr.isalpha() and vr.isupper()]
    syntax = value(meta, "TransferSyntaxUID", str, guess)
    if syntax not in (*NATIVE, RLE, *JPEG):  # pydicom inflates others without a limit
        name = UID_dictionary.get(syntax, [""])[0]
        raise ValueError(
            f"TransferSyntaxUID {syntax!r} {name} is not supported: convert the file "
            "to Explicit VR Little Endian, for instance by dcmconv +te of DCMTK"
        )
    tags = [tag_for_keyword(keyword) for keyword in _KEYWORDS]
    options = {"stop_when": lambda tag, *_: tag > tags[-1], "specific_tags": tags}
    return syntax, read_dataset(file, syntax == NATIVE[0], True, **options)


def value(dataset: Any, keyword: str, kind: type, default: Any = None) -> Any:
    """The first value as int (of VR US), str (CS), float (DS, IS) or bytes (whole).

    ValueError where it is not of that kind, or absent without a default.
    """
    # keep_deferred: pydicom would otherwise convert an empty value by its VR.
    element = dataset.get_item(keyword, keep_deferred=True)
    raw = (element.value if element is not None else None) or b""
    if not isinstance(raw, bytes):
        raise ValueError(f"{keyword} is not a plain value")
    text = raw.decode("ascii", "replace").split("\\")[0].strip("\0 ")
    if not (text if kind in (str, float) else raw):
        if default is None:
            raise ValueError(f"{keyword} is absent: cut off, or not an image")
        return default
    if kind is int and len(raw) == 2:
        return int.from_bytes(raw, "little")
    if kind is str or (kind is float and _NUMBER.fullmatch(text)):
        return kind(text)
    if kind is bytes:
        return raw
    raise ValueError(f"{keyword} {raw[:40]!r} is not a number of the element's kind")
