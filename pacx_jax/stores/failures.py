"""What goes wrong with a store, in words."""

from __future__ import annotations

from pacx_jax.errors import PacxError


class StoreError(PacxError):
    """A store that refuses, fails or cannot be reached."""


class Missing(StoreError):
    """No such object."""


_NO_BUCKET = "there is no such bucket (check its name, or make it)"
_REASONS = (  # words in an error, what they mean, whether trying again may help
    (("NoSuchBucket", "bucket does not exist"), _NO_BUCKET, False),
    (
        ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "token has expired"),
        "the credentials have expired: renew them, and give the command again",
        False,
    ),
    (
        ("token request", "169.254.169.254", "metadata.google", "latest/api/token"),
        "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, "
        "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login` "
        "for gs://",
        False,
    ),
    (
        ("InvalidAccessKeyId", "SignatureDoesNotMatch"),
        "wrong credentials: give others",
        False,
    ),
    (("PermanentRedirect", "301 "), "it lies in another region: set AWS_REGION", False),
    (("timed out", "TimedOut", "kind: Timeout"), "it did not answer in time", True),
    (("error sending request",), "it cannot be reached", True),
)


def explained(shown: str, error: Exception, write: bool, endpoint: str):
    """(StoreError, whether trying again may help) for what obstore raised."""
    if isinstance(error, StoreError):
        return error, False
    text, kind = str(error), type(error).__name__
    where = f" (at {endpoint})" if endpoint else ""
    for words, reason, helps in _REASONS:
        if any(word in text for word in words):
            return StoreError(f"{shown}: {reason}{where}"), helps
    if isinstance(error, FileNotFoundError):
        if write:
            return StoreError(f"{shown}: {_NO_BUCKET}{where}"), False
        return Missing(f"{shown}: no such object{where}"), False
    text = text.partition("Debug source")[0]
    code = text.partition("status code: ")[2].partition(":")[0]
    refused = kind in ("PermissionDeniedError", "UnauthenticatedError")
    if refused or code[:3] in ("401", "403"):  # of listings it has no kind
        what = "written" if write else "read"
        text = f"{shown}: your credentials do not let it be {what}: give others"
        return StoreError(f"{text}, or another bucket"), False
    reason = f"it answers {code}" if code else " ".join(text.split())[-200:]
    helps = not code or code[:1] == "5" or code[:3] in ("408", "429")
    return StoreError(f"{shown}: {reason}{where}"), helps
