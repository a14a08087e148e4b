"""The process that compiles: a pickled `worker.Request` in, its answer out."""

from __future__ import annotations

import os
import pickle
import sys

from launch.planning import worker
from pacx_jax.types import PacxError


def main() -> None:
    request = pickle.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    try:
        answer: worker.Result | str = worker.run(request)
    except PacxError as error:
        answer = str(error)
    out.write(pickle.dumps(answer))
    out.flush()


if __name__ == "__main__":
    main()
