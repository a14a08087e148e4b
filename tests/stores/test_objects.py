"""Objects of real stores on loopback, with and without faults."""

import mmap
import os
import random

import pytest

from pacx_jax.errors import PacxError
from pacx_jax.stores import failures, objects, staging, urls
from tests.stores import servers


def test_objects_are_written_created_swapped_listed_and_removed(url):
    store = objects.Store(url)
    assert store.list() == {} and store.head("a") is None
    first = store.write("a", b"1")
    assert store.read("a")[0] == b"1"
    assert store.create("a", b"2") is None and store.create("b/c", b"2")
    second = store.swap("a", b"3", first)
    assert store.swap("a", b"4", first) is None and store.read("a")[0] == b"3"
    assert store.swap("a", b"5", second) and store.swap("none", b"6", second) is None
    assert {name: item.size for name, item in store.list().items()} == {
        "a": 1,
        "b/c": 1,
    }
    assert set(store.list("b")) == {"b/c"}
    store.delete(["a", "never"])
    with pytest.raises(failures.Missing, match=f"{url}/a: no such object"):
        store.read("a")


@pytest.mark.parametrize("fault", ["lost", "flipped up", "503", "429", "reset"])
def test_own_write_counts_once_whatever_becomes_of_its_answer(fault, url, proxy):
    store = objects.Store(url)
    hits = iter([fault])
    proxy.fault = lambda method, path: next(hits, "") if method == "PUT" else ""
    version = store.create("a", b"mine")
    assert version and proxy.faults == {fault: 1}
    assert store.read("a")[0] == b"mine" and store.create("a", b"theirs") is None
    hits = iter([fault])
    assert store.swap("a", b"again", version) and proxy.faults == {fault: 2}
    assert store.read("a")[0] == b"again"
    hits = iter([fault])
    assert store.swap("a", b"too late", version) is None


@pytest.mark.parametrize("fault", ["truncated", "flipped", "503", "reset", "lost"])
def test_damaged_answer_is_read_again(fault, url, proxy):
    store = objects.Store(url)
    store.write("a", b"content" * 100)
    hits = iter([fault])
    proxy.fault = lambda method, path: next(hits, "") if method == "GET" else ""
    assert store.read("a")[0] == b"content" * 100 and proxy.faults == {fault: 1}


def test_large_object_goes_in_parts_and_a_cut_off_copy_goes_on(
    url, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr(objects, "PART", 5 * 2**20)  # the least that S3 takes
    monkeypatch.setattr(objects, "PATIENCE", 0.0)
    store, source, target = objects.Store(url), tmp_path / "a", tmp_path / "copy"
    source.write_bytes(random.Random(0).randbytes(23 * 2**20))
    staging.send(store, "a", source)
    assert len(proxy.requests) <= 12  # gs:// is read back: the server's tag is no MD5
    gets = []

    def fault(method, path):
        gets.extend([path] if method == "GET" else [])
        return "denied" if method == "GET" and len(gets) > 3 else ""

    proxy.fault = fault
    with pytest.raises(PacxError, match="your credentials do not let it be read"):
        store.download("a", target, store.head("a"))
    assert not target.exists()
    proxy.fault = lambda method, path: ""
    before = len(proxy.requests)
    store.download("a", target, store.head("a"))
    assert target.read_bytes() == source.read_bytes()
    ranges = [r for r in proxy.requests[before:] if r[0] == "GET"]
    assert (
        len(ranges) < 5 and os.listdir(tmp_path) == sorted(["a", "copy", "scratch"])[:2]
    )


def test_upload_whose_last_answer_is_lost_is_not_lost(
    url, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr(objects, "PART", 6 * 2**20)
    (tmp_path / "a").write_bytes(random.Random(0).randbytes(13 * 2**20))
    left = ["lost"]

    def fault(method, path):
        last = method == "POST" and "uploadId" in path
        return left.pop() if last and left else ""

    proxy.fault = fault
    staging.send(objects.Store(url), "a", tmp_path / "a")
    assert not left
    assert objects.Store(url).read("a")[0] == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("fault", ["", "lost", "flipped up"])
def test_file_larger_than_a_part_is_swapped_in_one(
    fault, url, proxy, monkeypatch, tmp_path
):
    monkeypatch.setattr(objects, "PART", 1000)
    file = tmp_path / "a"
    file.write_bytes(b"row\n" * 1000)
    with file.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    store = objects.Store(url)
    old = store.create("a", b"old")
    hits = iter([fault])
    proxy.fault = lambda method, path: next(hits, "") if method == "PUT" else ""
    assert store.swap("a", data, old) and store.swap("a", data[:-4], old) is None
    assert store.read("a")[0] == file.read_bytes()


def test_what_is_read_is_what_was_written_under_faults_of_every_kind(url, proxy):
    proxy.fault = servers.seeded(1, share=0.2)
    store, drawn, there = objects.Store(url), random.Random(2), {}
    for _ in range(60):
        name, data = drawn.choice("abcd"), drawn.randbytes(1000)
        act = drawn.choice(("write", "create", "swap", "delete", "read", "list"))
        if act == "write":
            there[name] = data, store.write(name, data)
        elif act == "create":
            made = store.create(name, data)
            assert (made is None) == (name in there)
            there.setdefault(name, (data, made))
        elif act == "swap" and name in there:
            made = store.swap(name, data, there[name][1])
            assert made is not None
            there[name] = data, made
        elif act == "delete":
            store.delete([name])
            there.pop(name, None)
        elif act == "read" and name in there:
            assert store.read(name)[0] == there[name][0]
        assert set(store.list()) == set(there)
    assert len(proxy.faults) == len(servers.FAULTS), proxy.faults


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("denied", "your credentials do not let it be written"),
        ("expired", "the credentials have expired: renew them"),
    ],
)
def test_refusal_is_one_line(fault, text, url, proxy):
    proxy.fault = lambda method, path: fault
    with pytest.raises(PacxError, match=f"^{url}/a: {text}"):
        objects.Store(url).write("a", b"1")
    with pytest.raises(PacxError, match=text.replace("written", "read")):
        objects.Store(url).list()


def test_no_bucket_and_no_server_are_one_line_each(proxy, monkeypatch):
    with pytest.raises(PacxError, match="no such bucket .check its name, or make it"):
        objects.Store(f"{proxy.kind}://another/x").write("a", b"1")
    closed = f"http://127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", closed)
    with pytest.raises(PacxError, match=f"/x/a: it cannot be reached .at {closed}"):
        objects.Store(f"{proxy.kind}://bucket/x", patience=0).read("a")


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_no_credentials_are_one_line(kind, monkeypatch, tmp_path):
    pytest.importorskip("obstore")
    ours = ("AWS_", "GOOGLE_", "STORAGE_")
    for name in [n for n in os.environ if n.startswith(ours)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    closed = f"127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{closed}")
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, closed)
    with pytest.raises(PacxError, match="://bucket/a: no credentials: set AWS_ACCESS"):
        objects.Store(f"{kind}://bucket", patience=0).read("a")


@pytest.mark.parametrize("port", ["s3"], indirect=True)
def test_credentials_come_from_the_profile_that_is_named(monkeypatch, tmp_path, port):
    _, number = port
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    keys = "[mine]\naws_access_key_id = a\naws_secret_access_key = b\n"
    (tmp_path / ".aws" / "credentials").write_text(keys)
    config = f"[profile mine]\nregion = x\nendpoint_url = http://127.0.0.1:{number}\n"
    (tmp_path / ".aws" / "config").write_text(config)
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = objects.Store("s3://bucket/profile")
    store.write("a", b"1")
    assert store.read("a")[0] == b"1"
    monkeypatch.setenv("AWS_PROFILE", "another")
    with pytest.raises(PacxError, match="AWS_PROFILE=another: ~/.aws has no such"):
        objects.Store("s3://bucket/profile")


@pytest.mark.parametrize("path", ["gcs://b1x/a", "S3://bucket/a", "s3:/bucket/a"])
def test_url_that_is_nearly_one_is_refused_with_the_right_one(path):
    right = "gs://b1x/a" if path.startswith("gcs") else "s3://bucket/a"
    with pytest.raises(PacxError, match=f"did you mean {right}"):
        urls.is_remote(path)


@pytest.mark.parametrize(
    "path", ["s3://", "gs://B/x", "s3://bucket//a", "s3://bucket/../a", "https://h/a"]
)
def test_url_that_is_none_is_refused(path):
    with pytest.raises(PacxError, match=f"^{path}: "):
        urls.is_remote(path)


@pytest.mark.parametrize("path", ["runs/mae", "/a/s3", "s3", "a:b", "~/gs"])
def test_other_paths_are_local(path):
    assert not urls.is_remote(path)
