"""What a run shows while it trains: one live line in a terminal, else plain lines.

A plain line comes with the first logged step, then at most every EVERY_SECONDS, and
with each evaluation. Every number is of the steps since the last logged one.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm

from pacx_jax.distributed import processes

EVERY_SECONDS = 30.0
_FORM = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}, {postfix}"


class Progress:
    """Shows how far a run is.

    Args:
      config: the run's.
      start: the step that it goes on from.
      quiet: shows nothing, as do all processes but the first.
    """

    def __init__(self, config: Any, start: int, quiet: bool = False):
        self._config, self._step = config, start
        self._shown = not quiet and processes.is_first()
        self._live = self._shown and sys.stderr.isatty()
        self._said = 0.0
        self._bar = tqdm.tqdm(
            total=config.total_steps,
            initial=start,
            desc=config.name,
            bar_format=_FORM,
            disable=not self._live,
        )
        self._bar.set_postfix_str("compiling", refresh=self._live)

    def stepped(self) -> None:
        """A step is done."""
        self._bar.update()

    def logged(self, step: int, loss: float, taken: Mapping[str, float]) -> None:
        """Shows a logged step.

        Args:
          taken: seconds of each of goodput.KINDS since the last logged one.
        """
        steps, self._step = step - self._step, step
        seconds = sum(taken[k] for k in ("productive", "recomputed", "data_stall"))
        stalled = taken["data_stall"]
        text = _measured(self._config, step, steps, loss, seconds, stalled)
        self._bar.set_postfix_str(text, refresh=False)
        if self._live or not self._shown:
            return
        now = time.monotonic()
        if not self._said or now - self._said >= EVERY_SECONDS:
            self._said = now
            self._say(f"step {step:,} of {self._config.total_steps:,}: {text}")

    def evaluated(self, step: int, told: str) -> None:
        """Shows an evaluation, in words."""
        if self._shown and told:
            self._say(f"step {step:,}: {told}")

    def _say(self, text: str) -> None:
        if self._live:
            self._bar.write(f"  {text}", file=sys.stdout)
        else:
            print(f"  {text}", flush=True)

    def close(self) -> None:
        """Ends the live line."""
        self._bar.close()


def _measured(config, step: int, steps: int, loss, seconds: float, stalled: float):
    """Loss, rate, time left and the share of waiting, in words."""
    if steps <= 0 or seconds <= 0:
        return f"loss {loss:.4f}"
    rate = steps * config.global_batch_size / seconds
    left = round((config.total_steps - step) * seconds / steps)
    return (
        f"loss {loss:.4f}, {rate:,.0f} images/s, "
        f"{datetime.timedelta(seconds=left)} left, "
        f"{max(min(stalled / seconds, 1), 0):.0%} waiting for data"
    )
