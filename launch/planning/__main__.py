"""The process that compiles: reads a pickled (function, arguments) of `worker`."""

import os
import pickle
import sys

from pacx_jax.errors import PacxError

if __name__ == "__main__":
    function, arguments = pickle.loads(sys.stdin.buffer.read())
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print is no part of the answer
        try:
            answer = function(*arguments)
        except PacxError as error:
            answer = error
        out.write(pickle.dumps(answer))
