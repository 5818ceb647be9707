"""Fit the maps into the space of a Stable unCLIP: ``fusemix conditioner``, see ``--help``."""

import sys

from fusemix.cli.conditioner import main

if __name__ == "__main__":
    sys.exit(main())
