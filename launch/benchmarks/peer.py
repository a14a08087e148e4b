"""The PyTorch pipeline of input_torch.py, in a process that is asked for turns."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

from launch.benchmarks import measure
from pacx_jax.errors import PacxError

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Peer:
    """The PyTorch pipeline in its process; `about` is what it says of itself."""

    LOADERS = ("torch", "torch_uint8")

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.about = self._answer()

    @classmethod
    def start(
        cls, files: pathlib.Path, options: argparse.Namespace, size: int
    ) -> Peer | None:
        """None, and a line, where PyTorch is missing."""
        if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
            print("PyTorch or torchvision is missing: the peer is not measured")
            return None
        numbers = map(str, (options.batch, options.steps, size))
        command = [sys.executable, "-m", "launch.benchmarks.input_torch", str(files)]
        process = subprocess.Popen(
            [*command, *numbers],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return cls(process)

    def turns(self, name: str) -> Callable[[], measure.Turn]:
        """What measures one turn of a loader."""

        def turn() -> measure.Turn:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            return self._answer()

        return turn

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise PacxError("the PyTorch pipeline ended; --peer=none goes without it")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
