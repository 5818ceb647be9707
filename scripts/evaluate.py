"""Measure how well one modality finds another: ``fusemix evaluate``, see ``--help``."""

import sys

from fusemix.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
