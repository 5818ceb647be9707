"""Choose which pairs to train on: ``fusemix subset``, see ``--help``."""

import sys

from fusemix.cli.subset import main

if __name__ == "__main__":
    sys.exit(main())
