"""Run an experiment of the paper: ``fusemix reproduce``, see ``--help``."""

import sys

from fusemix.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
