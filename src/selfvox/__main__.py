"""`python -m selfvox`: the command line."""

import sys

from selfvox.cli import main

if __name__ == "__main__":
    sys.exit(main())
