"""Which paths are remote, and how their stores are reached.

Credentials, endpoints and regions come from the environment, as the vendors' own tools
take them: AWS_*, ~/.aws/credentials and ~/.aws/config; GOOGLE_APPLICATION_CREDENTIALS,
gcloud's application-default login, or the metadata server of the machine.
"""

from __future__ import annotations

import configparser
import datetime
import json
import os
import pathlib
import re

from pacx_jax.errors import PacxError, install

_SCHEMES = {"gs": "gs", "s3": "s3", "gcs": "gs", "s3a": "s3", "s3n": "s3"}
_OTHERS = ("az", "abfs", "abfss", "hdfs", "http", "https", "file")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9]*):/+(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
SECONDS = 30.0  # for a request with its answer, of one part; then it is made again


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a store.

    Raises:
      PacxError: it looks like a store's but is spelt otherwise, or names no bucket.
    """
    found = _URL.fullmatch(str(path))
    scheme = found[1].lower() if found else ""
    if scheme in _OTHERS:
        raise PacxError(
            f"{path}: give a local path, gs://BUCKET/... or s3://BUCKET/..."
        )
    if scheme not in _SCHEMES:
        return False
    known = _SCHEMES[scheme]
    if not str(path).startswith(f"{known}://"):
        raise PacxError(f"{path}: did you mean {known}://{found[2]}?")
    bucket, _, key = found[2].partition("/")
    if not _BUCKET.fullmatch(bucket) or not str(path).startswith(f"{known}://{bucket}"):
        raise PacxError(f"{path}: {bucket!r} is no bucket: give {known}://BUCKET/...")
    if any(part in ("", ".", "..") for part in key.rstrip("/").split("/")) and key:
        raise PacxError(f"{path}: it has an empty part, . or .. in it")
    return True


def absolute(path: str | os.PathLike) -> str:
    """The path that is the same from every folder."""
    return str(path).rstrip("/") if is_remote(path) else os.path.abspath(path)


def parent(path: str | os.PathLike) -> str:
    """The URL of the folder that holds a remote path."""
    return str(path).rstrip("/").rpartition("/")[0]


def connect(url: str, seconds: float | None = None):
    """(obstore's store of the bucket, the key in it, its endpoint if not the vendor's).

    Nothing is asked of the store yet.

    Args:
      seconds: for a request to end, by default SECONDS. obstore's time-outs include the
        sending, so they bound how slow an upload may be.
    """
    try:
        from obstore import store
    except ImportError:
        raise PacxError(
            f"{url}: buckets need the package obstore: {install('cloud')}"
        ) from None
    is_remote(url)
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.rstrip("/").partition("/")
    retry = {
        "max_retries": 4,
        "retry_timeout": datetime.timedelta(seconds=20),
        "backoff": {
            "init_backoff": datetime.timedelta(milliseconds=100),
            "max_backoff": datetime.timedelta(seconds=3),
            "base": 2,
        },
    }
    seconds = SECONDS if seconds is None else seconds
    client = {"timeout": f"{1000 * seconds:.0f}ms", "connect_timeout": "5s"}
    if scheme == "gs":
        endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "")
        config = {}
        if endpoint:
            key_file = {"gcs_base_url": endpoint, "disable_oauth": True}
            key_file |= dict.fromkeys(("client_email", "private_key"), "")
            config["service_account_key"] = json.dumps(
                key_file | {"private_key_id": ""}
            )
    else:
        config = _of_profile()
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
            "AWS_ENDPOINT_URL", config.get("endpoint", "")
        )
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    try:
        make = store.GCSStore if scheme == "gs" else store.S3Store
        found = make(bucket, config=config, client_options=client, retry_config=retry)
    except Exception as e:  # such as a key file that is none
        reason = " ".join(str(e).partition("Debug source")[0].split())[:200]
        raise PacxError(f"{url}: bad credentials or settings ({reason})") from None
    return found, key, endpoint


def _of_profile() -> dict[str, str]:
    """What AWS_PROFILE, or its default, says that the environment does not.

    Profiles that name other programs or a single sign-on are not followed.
    """
    environment, home = os.environ, pathlib.Path.home() / ".aws"
    name = environment.get("AWS_PROFILE", "default")
    keys = configparser.ConfigParser(interpolation=None)
    more = configparser.ConfigParser(interpolation=None)
    try:
        file = environment.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")
        keys.read(file, encoding="utf-8")
        more.read(environment.get("AWS_CONFIG_FILE", home / "config"), "utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError) as e:
        raise PacxError(f"AWS's files cannot be read: {e}") from None
    section = name if name == "default" else f"profile {name}"
    own = dict(more[section]) if section in more else {}
    own |= dict(keys[name]) if name in keys else {}
    if "AWS_PROFILE" in environment and not own:
        raise PacxError(f"AWS_PROFILE={name}: ~/.aws has no such profile")
    wanted = {}
    if "AWS_ACCESS_KEY_ID" not in environment:
        wanted = {
            "aws_access_key_id": "access_key_id",
            "aws_secret_access_key": "secret_access_key",
            "aws_session_token": "session_token",
        }
    if not {"AWS_REGION", "AWS_DEFAULT_REGION"} & set(environment):
        wanted["region"] = "region"
    if not {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & set(environment):
        wanted["endpoint_url"] = "endpoint"
    return {mine: own[theirs] for theirs, mine in wanted.items() if theirs in own}
