"""`python -m unspoken` is the command line (so `accelerate launch -m unspoken ...` works)."""

import sys

from unspoken.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
