"""The process that compiles: a pickled function of `worker` and its request in."""

from __future__ import annotations

import os
import pickle
import sys

from pacx_jax.errors import PacxError


def main() -> None:
    function, request = pickle.loads(sys.stdin.buffer.read())
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no part of the answer
    try:
        answer = function(request)
    except PacxError as error:
        answer = error
    out.write(pickle.dumps(answer))
    out.flush()


if __name__ == "__main__":
    main()
