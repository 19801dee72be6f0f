"""`python -m jaxnn`: the command line."""

import sys

from jaxnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
