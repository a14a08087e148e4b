"""The tables of docs/scaling.md: every recipe for every pod."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import pathlib
import sys
import time
from concurrent import futures

from launch.planning import chips, compilers, plan, report
from pacx_jax.errors import PacxError

PODS = ("v5e:16x16", "v6e:16x16", "v5p:8x8x16")
GPUS = ("gpu:1xH100", "gpu:1xH200", "gpu:256xH100")
# Recipe -> examples a chip: a multiple of 8 that every pod's memory has room for.
RECIPES = {
    "mae_vitb16": 128,
    "distill_vitb16": 64,
    "labs_dae": 1024,
    "ecg_net1d": 64,
    "linear_probe": 256,
    "segment": 64,
}
ON_GPUS = {"mae_vitb16": 256, "distill_vitb16": 64}
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def renew(path: pathlib.Path, compiles: int, cache: pathlib.Path, jobs: int) -> None:
    """Plans everything and writes it between the marks in the file.

    Raises:
      PacxError: a file without the marks; whatever a plan raises.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise PacxError(f"--out={path} has no lines {BEGIN} and {END}")
    todo = [(recipe, pod, n) for recipe, n in RECIPES.items() for pod in PODS]
    todo += [(recipe, gpus, n) for recipe, n in ON_GPUS.items() for gpus in GPUS]
    with futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(section, *one, compiles, cache) for one in todo]
        try:
            found = [line for each in running for line in each.result()]
        finally:
            pool.shutdown(cancel_futures=True)
    jax = importlib.metadata.version("jax")
    libtpu, cuda = compilers.libtpu_version(), compilers.cuda_version()
    versions = f"jax {jax}, libtpu {libtpu}, jax-cuda13-plugin {cuda}"
    made = f"Made on {datetime.date.today()} with {versions}, by\n"
    made += f"`python launch/plan.py --all --out={path.name}`."
    made = made.replace(path.name, f"docs/{path.name}")
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    body = "\n".join(["", made, *found, ""])
    path.write_text(text[:start] + body + text[stop:], encoding="utf-8")


def section(
    recipe: str, pod: str, rows: int, compiles: int, cache: pathlib.Path
) -> list[str]:
    """One recipe on one pod, so many rows a chip: its command and its tables."""
    config = importlib.import_module(f"configs.{recipe}").get_config()
    config.global_batch_size = rows * chips.parse(pod).devices
    start = time.perf_counter()
    found = plan.make(config, pod, compiles, cache)
    print(f"{recipe} {pod} {time.perf_counter() - start:.0f} s", file=sys.stderr)
    command = (
        f"python launch/plan.py --config=configs/{recipe}.py --topology={pod} \\\n"
        f"    --global_batch={config.global_batch_size}"
    )
    title = f"## {recipe} on {pod}"
    return ["", title, "", "```", command, "```", "", *report.lines(found)]
