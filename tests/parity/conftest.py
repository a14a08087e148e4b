"""Cases live from PyTorch or recorded, and errors that are measured and stated.

Every parity test runs from a case that comes either from `recorded/` or, where PyTorch
is installed, live; the assertion is the same. `pytest -v tests/parity` ends with a
table of what was measured.
"""

from __future__ import annotations

import contextlib

import jax
import pytest

from pacx_jax.encoders import model_folder
from pacx_jax.modalities import teachers
from pacx_jax.objectives import distill
from tests import tiny
from tests.parity import comparing, sizes


# What is recorded is what PyTorch gives now (test_cases): live ones ask the same again.
@pytest.fixture(params=["recorded", pytest.param("live", marks=pytest.mark.full)])
def source(request):
    """Where cases come from; `live` skips, or fails, where there is no PyTorch."""
    if request.param == "live":
        comparing.require_torch()
    return request.param


@pytest.fixture(params=comparing.PRECISIONS, ids=lambda p: p.name)
def precision(request):
    """The precision of both frameworks."""
    x64 = request.param.name == "float64"
    with jax.enable_x64(True) if x64 else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def case(source, precision):
    """Name -> that case, from this test's source and in its precision."""
    return lambda name: comparing.Case(comparing.load(source, name), precision)


@pytest.fixture
def measure(record_property):
    """(what, got, want, bound, relative) -> asserts the largest error, and states it.

    Arrays or trees of them. Absolute, or in units of each array's largest entry.
    """

    def check(what, got, want, bound, relative=False):
        error, where = comparing.largest_error(got, want, relative)
        kind = "relative" if relative else "absolute"
        text = f"{what}: {error:.1e} {kind}, bound {bound:.0e}{where}"
        print(text)
        record_property("measured", text)
        assert error <= bound, text
        return error

    return check


@pytest.fixture
def stage_two():
    """(mesh) -> Stage 2's objective in the reference preset, at the cases' sizes."""

    def make(mesh, **encoder_fields):
        s = sizes.PACX | encoder_fields
        encoder = {"patch_size": s["patch"], "width": s["d"], "depth": s["depth"],
                   "num_heads": s["heads"], "ln_eps": s["eps"],
                   "image_size": s["patch"] * sizes.PACX_GRID[0]}  # fmt: skip
        folders = {
            "encoder": ("vit", encoder),
            "ecg": ("ecg_net1d", {"filters": [sizes.PACX_ECG]}),
            "labs": ("labs_dae", {"latent": sizes.PACX_LABS}),
        }

        made = {
            name: model_folder.ModelFolder(kind, architecture, {}, {})
            for name, (kind, architecture) in folders.items()
        }  # embeddings are cached: the weights stay unread
        chosen = {m: teachers.encoder(m, made[m]) for m in ("ecg", "labs")}
        small = {
            "dtype": "float32",
            "data__image_size": encoder["image_size"],
            "heads__shared_dim": sizes.PACX_SHARED,
            "lora__rank": sizes.PACX_RANK,
            "lora__alpha": sizes.PACX_ALPHA,
        }
        config = tiny.config("distill_vitb16", "reference", **small)
        return distill.from_teachers(config, mesh, made["encoder"], chosen)

    return make


def pytest_terminal_summary(terminalreporter):
    """With -v: what every parity test measured."""
    if terminalreporter.config.get_verbosity() < 0:
        return
    rows = [
        (report.nodeid.split("::")[-1], value)
        for reports in ("passed", "failed")
        for report in terminalreporter.stats.get(reports, ())
        for name, value in getattr(report, "user_properties", ())
        if name == "measured"
    ]
    if rows:
        terminalreporter.section("measured errors")
    for test, value in rows:
        terminalreporter.write_line(f"{test}: {value}")
