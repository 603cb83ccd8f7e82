"""``python -m amx_jax`` is ``amx``."""

import sys

from amx_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
