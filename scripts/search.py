"""Search an index by words, a picture or a sound: ``fusemix search``, see ``--help``."""

import sys

from fusemix.cli.search import main

if __name__ == "__main__":
    sys.exit(main())
