"""Writing a layout: a partial folder that is renamed when complete, and its marker.

Studies are drawn by worker processes in any order, but rows have fixed places (row
numbers in .npy files, file names) and CSV lines are written in order by the parent, so
the bytes on disk do not depend on the number of workers.
"""

import collections
import concurrent.futures
import contextlib
import csv
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import shutil

import numpy as np
import tqdm

from pacx_jax import files

VERSION = 3  # raise when the same parameters would give other bytes
MARKER = "cohort_layout.json"
_PATIENTS_PER_TASK = 6


class CohortError(Exception):
    """A one-line message for the person at the command line."""


def write_json(path: pathlib.Path, value) -> None:
    """Writes JSON with sorted keys, whole."""
    files.write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def create_array(path: pathlib.Path, shape, dtype) -> None:
    """Creates an .npy file of zeros on disk without holding it in memory."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    array.flush()


def finished(root: pathlib.Path, parameters: dict) -> dict | None:
    """What a finished layout realised, or None if it has to be written.

    Raises:
        CohortError: if the folder holds another cohort or is not ours.
    """
    marker = root / MARKER
    if not root.exists():
        return None
    if not marker.is_file():
        raise CohortError(f"{root} exists and was not written by this generator")
    found = json.loads(marker.read_text())
    if found["parameters"] != parameters:
        keys = sorted(parameters.keys() | found["parameters"].keys())
        differ = ", ".join(
            f"{k} {found['parameters'].get(k)} there, {parameters.get(k)} asked"
            for k in keys
            if found["parameters"].get(k) != parameters.get(k)
        )
        raise CohortError(f"{root} holds another cohort ({differ}): remove it")
    return found["realised"]


@contextlib.contextmanager
def partial(root: pathlib.Path, parameters: dict, size: int):
    """Yields a folder to fill and a dict `realised`; renames it to `root` at the end.

    Args:
        root: the layout's final folder; must not exist.
        parameters: what decides its content, kept in the marker.
        size: bytes about to be written.

    Raises:
        CohortError: if the disk cannot hold `size` bytes.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root.parent).free
    if size > free:
        raise CohortError(
            f"{root} needs {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free"
        )
    work = root.with_name(f".{root.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    realised: dict = {}
    yield work, realised
    write_json(work / MARKER, {"parameters": parameters, "realised": realised})
    os.replace(work, root)


@contextlib.contextmanager
def pool(workers: int):
    """Yields `run(task, items)`, an ordered and bounded map over processes."""
    if workers == 1:
        yield lambda task, items: (task(item) for item in items)
        return
    # Spawned, not forked: the parent may hold threads (jax under pytest).
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:

        def run(task, items):
            waiting = collections.deque()
            for item in items:
                waiting.append(pool.submit(task, item))
                if len(waiting) >= 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield run


def tasks(context, planned: list[tuple[int, int]], first_row: int = 0):
    """Cuts a plan of (patient, studies) into (context, [(patient, studies, row)])."""
    row, group = first_row, []
    for patient, n in planned:
        group.append((patient, n, row))
        row += n
        if len(group) == _PATIENTS_PER_TASK:
            yield context, group
            group = []
    if group:
        yield context, group


def records(run, task, items, total: int, name: str):
    """Yields the records of every task in order, with a progress bar."""
    with tqdm.tqdm(total=total, desc=name, unit="study", mininterval=1.0) as bar:
        for group in run(task, items):
            yield from group
            bar.update(len(group))


@contextlib.contextmanager
def table(path: pathlib.Path, columns):
    """Yields a csv writer with the header written."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer


@contextlib.contextmanager
def packed_tables(paths: dict[str, pathlib.Path], columns: dict):
    """Yields name -> csv writer of a gzip file without a date in it."""
    with contextlib.ExitStack() as stack:
        out = {}
        for name, path in paths.items():
            raw = stack.enter_context(open(path, "wb"))
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
            text = io.TextIOWrapper(stack.enter_context(packed), newline="")
            out[name] = csv.writer(stack.enter_context(text), lineterminator="\n")
            out[name].writerow(columns[name])
        yield out


class Prevalence:
    """Counts 0/1 columns of the records that pass through it."""

    def __init__(self):
        self._sum, self._n = collections.Counter(), 0

    def add(self, labels: dict[str, int]) -> None:
        self._n += 1
        for name, value in labels.items():
            self._sum[name] += int(value == 1)

    def shares(self) -> dict[str, float]:
        """Share of ones a column, rounded to 4 digits."""
        return {name: round(n / self._n, 4) for name, n in self._sum.items()}
