"""What a user writes outside of the library goes all the way, as the library's own."""

import re

import numpy as np
import pytest

from pacx_jax import load_encoder, main, objectives, step
from pacx_jax.distributed import preemption
from pacx_jax.errors import PacxError
from pacx_jax.run import finished
from tests.own import recipe
from tests.reliability import runs


def test_an_objective_of_ones_own_trains_stops_resumes_exports_and_loads(
    tmp_path, monkeypatch, capsys
):
    runs.use_patients(monkeypatch)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    main.run(recipe.get_config(), str(straight))
    with monkeypatch.context() as patched:
        patched.setattr(step, "make_train_step", step.make_train_step)
        runs.at_update(5, runs.ask_to_end)
        with pytest.raises(preemption.Preempted, match="saved at step 5"):
            main.run(recipe.get_config(), str(stopped))
    main.run(recipe.get_config(), str(stopped))
    runs.assert_same(stopped, straight)
    said = capsys.readouterr().out
    assert re.search(r"brightness: step 20, val/loss \d.*, val/correlation ", said)
    card = (stopped / "export" / "README.md").read_text()
    assert "val/correlation" in card and "tests.own.brightness" in card
    image = np.zeros((20, 30), np.uint8)
    z = [load_encoder(str(run))(image) for run in (straight, stopped)]
    assert z[0].shape == (1, 32) and np.array_equal(*z)
    with pytest.raises(PacxError, match="the objective tests.own.brightness keeps no"):
        finished.read_run(finished.read_config(str(stopped)), str(stopped), heads=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distil", "'distil' .did you mean distill.*: choose mae, mvmae, labs_dae"),
        ("nowhere.objective", "'nowhere.objective' cannot be imported .No module"),
        ("tests.own.recipe", "recipe.py has no make, export, SHOWN"),
    ],
)
def test_an_objective_that_is_none_is_one_line(name, message):
    with pytest.raises(PacxError, match=message):
        objectives.load(name)
