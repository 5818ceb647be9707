"""Join several tables of pairs: ``fusemix join``, see ``--help``."""

import sys

from fusemix.cli.join import main

if __name__ == "__main__":
    sys.exit(main())
