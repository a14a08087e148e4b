"""Plans as tables for people: the same in a terminal and in docs/scaling.md."""

from __future__ import annotations

import importlib
import pathlib
import sys
from concurrent import futures
from typing import Any

import jax

from launch.planning import chips, compilers, plan
from pacx_jax.errors import PacxError

PODS = ("v5e:16x16", "v6e:16x16", "v5p:8x8x16")
GPUS = ("gpu:1xH100", "gpu:1xH200", "gpu:256xH100")
# Recipe -> examples a chip: a multiple of 8 that every pod's memory has room for.
RECIPES = dict(mae_vitb16=128, distill_vitb16=64, labs_dae=1024, ecg_net1d=64)
RECIPES |= dict(linear_probe=256, segment=64)
ON_GPUS = dict(mae_vitb16=256, distill_vitb16=64)
STUDIES = dict(mvmae_vitb16=64, mvmae_v2t_vitb16=64, vq_f16=64, chexmix_vitb=64)
POD_AND_HOST = ("v5e:16x16", "gpu:8xH100")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def renew(path: pathlib.Path, cache: pathlib.Path) -> None:
    """Plans every recipe for every pod, and writes it between the file's marks."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise PacxError(f"--out={path} has no lines {BEGIN} and {END}")
    todo = [(recipe, pod, n) for recipe, n in RECIPES.items() for pod in PODS]
    todo += [(recipe, gpus, n) for recipe, n in ON_GPUS.items() for gpus in GPUS]
    todo += [(one, pod, n) for one, n in STUDIES.items() for pod in POD_AND_HOST]
    with futures.ThreadPoolExecutor(2) as pool:  # a compile takes one core
        sections = pool.map(lambda one: section(*one, cache), todo)
        found = [line for each in sections for line in each]
    libtpu, cuda = map(compilers.version, compilers.WHEELS)
    made = (
        f"Made with jax {jax.__version__}, libtpu {libtpu}, jax-cuda13-plugin {cuda}, "
        f"by\n`python launch/plan.py --all --out=docs/{path.name}`."
    )
    body = "\n".join(["", made, *found, ""])
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text(text[:start] + body + text[stop:], encoding="utf-8")


def section(recipe: str, pod: str, rows: int, cache: pathlib.Path) -> list[str]:
    """One recipe on one pod, so many rows a chip: its date, command and tables."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.global_batch_size = rows * chips.parse(pod).devices
    found = plan.make(config, pod, cache)
    print(f"{recipe} on {pod}", file=sys.stderr)
    head = f"""
## {recipe} on {pod}

Compiled on {found["compiled_on"]}.

```
python launch/plan.py --config=configs/{recipe}.py --topology={pod} \\
    --global_batch={config.global_batch_size}
```
"""
    return [head, *lines(found)]


def lines(found: dict[str, Any]) -> list[str]:
    """The tables of a plan of `plan.make`, as Markdown."""
    figures = {
        name.removesuffix("_seconds").replace("_", " "): _text(name, value)
        for name, value in found.items()
        if isinstance(value, int | float | str) and value
    }
    figures["mesh"] = " x ".join(f"{k} {n}" for k, n in found["mesh"].items())
    tables = [_table([{"figure": k, "value": v} for k, v in figures.items()])]
    tables += [_table(found[name]) for name in ("collectives", "kernels", "curve")]
    return [line for table in tables if table for line in (*table, "")][:-1]


def _table(rows: list[dict[str, Any]] | None) -> list[str]:
    """Rows with the same keys as a table of Markdown; nothing of none."""
    if not rows:
        return []
    head = (name.removesuffix("_seconds").replace("_", " ") for name in rows[0])
    rule = ("---:" if isinstance(x, int | float) else "---" for x in rows[0].values())
    body = ([_text(*item) for item in row.items()] for row in rows)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def _text(name: str, value: Any) -> str:
    """A figure as people read it, by the end of its name."""
    if "bytes_per_chip" in name and value >= chips.GIB / 100:
        return f"{value / chips.GIB:.2f} GiB"
    if name.endswith("_seconds"):
        return f"{1000 * value:.3g} ms"
    if "efficiency" in name or name.endswith("_mfu"):
        return f"{value:.1%}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
