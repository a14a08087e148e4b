"""`--soak_minutes=N`: the tests of this folder go on with other damage for N minutes.

The chosen tests that can (by `-k`, or all) share the minutes. Draws differ from run to
run. See docs/reliability.md.
"""

import time

import pytest


def pytest_addoption(parser):
    help_text = "minutes that tests/fuzz goes on for, with random damage"
    parser.addoption("--soak_minutes", type=float, default=0.0, help=help_text)


@pytest.fixture
def soaks(request) -> bool:
    """Whether it is a long run."""
    return request.config.getoption("soak_minutes") > 0


@pytest.fixture
def rounds(request):
    """The numbers of a test's rounds: 0 alone, or as many as its minutes allow."""
    minutes = request.config.getoption("soak_minutes")
    sharing = [i for i in request.session.items if "rounds" in i.fixturenames]
    end = time.monotonic() + 60 * minutes / len(sharing)

    def numbers():
        n = 0
        while n == 0 or time.monotonic() < end:
            yield n
            n += 1

    return numbers()
