"""A bucket for each test of a module, on a server that the module shares."""

import itertools

import pytest

from pacx_jax.stores import objects
from tests.stores import servers

_NUMBERS = itertools.count()


@pytest.fixture(scope="module", params=["s3", "gs"])
def port(request):
    if not servers.FOLDER:
        pytest.skip(servers.WHY)
    with servers.server(request.param) as found:
        yield request.param, found


@pytest.fixture
def proxy(port, monkeypatch, tmp_path):
    """In front of the store; the environment names it, and a folder for copies."""
    with servers.Proxy(*port) as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PACX_SCRATCH", str(tmp_path / "scratch"))
        monkeypatch.setattr(objects, "PATIENCE", 10.0)
        yield found


@pytest.fixture
def url(proxy):
    """An empty folder in a bucket."""
    return f"{proxy.kind}://{servers.BUCKET}/folder_{next(_NUMBERS)}"
