"""`python -m mnv3lib`: the command line."""

import sys

from mnv3lib.commands import main

if __name__ == "__main__":
    sys.exit(main())
