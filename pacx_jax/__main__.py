"""`python -m pacx_jax` is `pacx`, where that is not on PATH."""

import sys

from pacx_jax.commands import main

if __name__ == "__main__":
    sys.exit(main())
