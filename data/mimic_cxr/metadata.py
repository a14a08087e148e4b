"""What MIMIC-CXR-JPG's metadata say of an image's view."""

from __future__ import annotations

import re

from pacx_jax.input import views

VIEWS = (
    "ViewPosition",
    "ViewCodeSequence_CodeMeaning",
    "PerformedProcedureStepDescription",
)


def claims(position: str, code: str, description: str) -> tuple[tuple[str, str], ...]:
    """The cells of VIEWS in a row, as `views.settle` takes them."""
    found = (("listed", position), *((("DICOM", code),) if code else ()))
    if views.settle(found).view == "unknown":
        words = {*re.findall("[a-z]+", description.lower())}
        if "ap" in words and not words & {"pa", "lat", "lateral"}:
            found += (("guessed", "AP"),)
    return found
