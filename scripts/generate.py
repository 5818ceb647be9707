"""Draw a picture of a sound, words or a picture: ``fusemix generate``, see ``--help``."""

import sys

from fusemix.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
