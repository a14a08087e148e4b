"""What a trace for TensorBoard holds, as `jax.profiler` reads it."""

from __future__ import annotations

import pathlib

import jax


def events(folder: pathlib.Path) -> list[tuple[str, dict]]:
    """(name, statistics) of every event of the one trace below the folder."""
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    return [
        (event.name, dict(event.stats))
        for plane in data.planes
        for line in plane.lines
        for event in line.events
    ]
