"""Encode a column of a table into a store of latents: ``fusemix extract``, see ``--help``."""

import sys

from fusemix.cli.extract import main

if __name__ == "__main__":
    sys.exit(main())
