"""Make a table of pairs of a dataset: ``fusemix table``, see ``--help``."""

import sys

from fusemix.cli.table import main

if __name__ == "__main__":
    sys.exit(main())
