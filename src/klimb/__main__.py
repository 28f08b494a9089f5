"""`python -m klimb` is the command line."""

import sys

from klimb.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
