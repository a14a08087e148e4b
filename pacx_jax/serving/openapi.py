"""The OpenAPI description of a service, as /openapi.json gives it."""

from __future__ import annotations

import pacx_jax
from pacx_jax.serving.model import Served
from pacx_jax.serving.uploads import Limits

_LINE = {"type": "object", "properties": {"error": {"type": "string"}}}
_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}
_REFUSALS = {
    400: "no image in the request, a damaged form, or an unknown parameter",
    401: "no or wrong token",
    408: "the upload took too long",
    413: "too many bytes, pixels or files",
    415: "a file that is no JPEG, PNG or DICOM, or a compressed request",
    422: "a damaged file, or one without an X-ray that can be read",
    429: "too many requests in progress: try again after Retry-After seconds",
    500: "inference failed",
    501: "DICOM, and the service lacks the extra dicom",
    503: "still compiling",
    504: "no result in time",
}


def describe(served: Served, limits: Limits, with_token: bool) -> dict:
    """The OpenAPI 3.1 document, as a dict for JSON.

    Args:
      served: the model; /predict is described if it has a classifier.
      limits: of requests, which the texts state.
      with_token: whether requests need a token.
    """
    encoder, work = served.encoder, {}
    z = _array(_NUMBER, encoder.width)
    work["embed"] = (
        "The embedding of each X-ray",
        _answer({"embedding": z}, {"width": {"type": "integer"}}),
    )
    shares = _array(_array(_NUMBER))
    work["rollout"] = (
        "Attention rollout: the share of each patch in the embedding",
        _answer({"rollout": shares}, {"grid": _array({"type": "integer"}, 2)}),
    )
    if served.classifier:
        work["predict"] = ("Calibrated probabilities of each label", _predicted())
    paths = {
        f"/{kind}": {"post": _work(kind, served, limits, *about)}
        for kind, about in work.items()
    }
    paths |= {
        path: {"get": {"summary": summary, "security": [], "responses": responses}}
        for path, summary, responses in (
            ("/health", "Whether the process is worth keeping", _told(200, 503)),
            ("/ready", "Whether requests should be sent here", _told(200, 503)),
        )
    }
    metrics = {"200": {"description": "OK", "content": {"text/plain": {}}}}
    paths["/metrics"] = {
        "get": {"summary": "Counts, for Prometheus", "responses": metrics}
    }
    about = {
        "openapi": "3.1.0",
        "info": {
            "title": "pacx_jax",
            "version": pacx_jax.__version__,
            "description": "A chest-X-ray model. For research; not a medical device.",
        },
        "paths": paths,
    }
    if with_token:
        scheme = {"type": "http", "scheme": "bearer"}
        about["components"] = {"securitySchemes": {"token": scheme}}
        about["security"] = [{"token": []}]
    return about


def _array(items: dict, length: int = 0) -> dict:
    found = {"type": "array", "items": items}
    return found | {"minItems": length, "maxItems": length} if length else found


def _answer(result: dict, beside: dict) -> dict:
    """An object with `results`, one for each file in the request's order."""
    row = {"type": "object", "properties": {"name": _TEXT} | result}
    return {"type": "object", "properties": beside | {"results": _array(row)}}


def _predicted() -> dict:
    numbers = {"type": "object", "additionalProperties": _NUMBER}
    called = {"type": ["boolean", "null"]}
    called = {"type": "object", "additionalProperties": called}
    texts = _array(_TEXT)
    return _answer(
        {"probabilities": numbers, "called": called},
        {"task": _TEXT, "labels": texts, "calibrated": texts, "thresholds": numbers},
    )


def _told(*statuses: int) -> dict:
    found = {"type": "object", "properties": {"status": _TEXT}}
    content = {"application/json": {"schema": found}}
    words = {200: "yes", 503: "no"}
    return {str(s): {"description": words[s], "content": content} for s in statuses}


def _work(
    kind: str, served: Served, limits: Limits, summary: str, answer: dict
) -> dict:
    binary = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"file": _array(binary)}}
    responses = {"200": _content("the results", answer)}
    responses |= {str(s): _content(text, _LINE) for s, text in _REFUSALS.items()}
    parameters = []
    if served.encoder.views:
        text = "view of all images of the request, such as PA or lateral"
        parameters = [
            {"name": "view", "in": "query", "description": text, "schema": _TEXT}
        ]
    return {
        "operationId": kind,
        "summary": summary,
        "description": (
            f"JPEG, PNG or DICOM files, at most {limits.images} and {limits.bytes} "
            f"bytes a request and {limits.pixels} pixels an image."
        ),
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "application/octet-stream": {"schema": binary},
            },
        },
        "responses": responses,
    }


def _content(text: str, schema: dict) -> dict:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
