"""`python -m mindie_cache` is the command `mindie-cache`."""

import sys

from mindie_cache.cli import main

if __name__ == "__main__":
    sys.exit(main())
