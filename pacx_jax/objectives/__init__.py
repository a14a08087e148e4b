"""What each stage trains: every module here has `make(config) -> Objective`."""

from __future__ import annotations

from jax.sharding import Mesh

from pacx_jax.errors import PacxError
from pacx_jax.objectives import classify, distill, ecg, labs_dae, mae, segment
from pacx_jax.types import Objective


def make(config, mesh: Mesh) -> Objective:
    """The objective that `config.objective` names."""
    simple = {"mae": mae, "labs_dae": labs_dae, "ecg": ecg}
    simple |= {"classify": classify, "segment": segment}
    if config.objective == "distill":
        return distill.make(config, mesh)
    if config.objective not in simple:
        choices = ", ".join([*simple, "distill"])
        raise PacxError(f"config.objective {config.objective!r}: choose {choices}")
    return simple[config.objective].make(config)
