"""The cases themselves: recorded equals live, and PyTorch is there where it must be."""

import sys

import numpy as np
import pytest

from tests.parity import cases, comparing, record

NAMES = sorted(p.stem for p in record.FOLDER.glob("*.safetensors"))


def test_recorded_files_are_small():
    size = sum(p.stat().st_size for p in record.FOLDER.iterdir())
    assert size < 2 * 2**20


def test_every_case_is_recorded_and_no_other():
    assert NAMES == sorted(cases.ALL)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_case_equals_what_pytorch_gives_now(name, measure):
    # Inputs and weights to the bit; what was computed to the rounding of one machine
    # and another, gradients in units of their largest entry.
    comparing.require_torch()
    recorded, live = (comparing.load(source, name) for source in ("recorded", "live"))
    assert sorted(recorded) == sorted(live)
    for key, now in live.items():
        then = recorded[key]
        assert then.shape == now.shape, key
        assert then.dtype == now.dtype, key
        if key.startswith(("in/", "state/")):
            np.testing.assert_array_equal(then, now, err_msg=key)
    computed = [k for k in live if not k.startswith(("in/", "state/"))]
    for kind, bound in (("grad/", 1e-5), ("out/", 1e-5), ("out64/", 1e-10),
                        ("final/", 1e-3), ("final64/", 1e-8)):  # fmt: skip
        keys = [k for k in computed if k.startswith(kind)]
        if keys:
            pair = (
                {k: without_key_bias(k, x[k]) for k in keys} for x in (live, recorded)
            )
            measure(f"{name} {kind}", *pair, bound, relative=kind == "grad/")


def without_key_bias(name, value):
    """A fused qkv bias without its middle third, where 20 updates made it in float32.

    It adds the same to all scores of a query, which the softmax does not see: its
    gradient is rounding alone, of which Adam makes steps as large as of any other. So
    is that of a bias of normalised keys, which counts as 0.
    """
    if name.endswith("k_norm.bias"):
        return 0 * value
    if not (name.startswith("final/") and name.endswith("qkv.bias")):
        return value
    third = len(value) // 3
    return np.delete(value, slice(third, 2 * third))


def test_recorded_files_name_the_version_of_pytorch():
    for name in NAMES:
        assert record.torch_version(name).startswith("2."), name


def test_without_pytorch_a_live_test_is_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("PACX_REQUIRE_TORCH", raising=False)
    with pytest.raises(pytest.skip.Exception, match="recorded values alone"):
        comparing.require_torch()


def test_without_pytorch_a_live_test_fails_where_ci_wants_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("PACX_REQUIRE_TORCH", "1")
    with pytest.raises(pytest.fail.Exception, match="PACX_REQUIRE_TORCH"):
        comparing.require_torch()
