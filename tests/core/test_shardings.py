"""How every array of every recipe lies on meshes, pinned."""

import json

import pytest

from tests import stages
from tests.core import record_shardings


@pytest.mark.parametrize("stage", stages.STAGES)
def test_arrays_lie_as_recorded(stage, stage_folders):
    # After a change that is meant: python -m tests.core.record_shardings
    want = json.loads(record_shardings.GOLDEN.read_text())[stage]
    assert record_shardings.found(stage, stage_folders) == want
