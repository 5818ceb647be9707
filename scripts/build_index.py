"""Build a search index of a table of pairs: ``fusemix index``, see ``--help``."""

import sys

from fusemix.cli.index import main

if __name__ == "__main__":
    sys.exit(main())
