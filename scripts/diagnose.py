"""Compare encoders before anything is trained: ``fusemix diagnose``, see ``--help``."""

import sys

from fusemix.cli.diagnose import main

if __name__ == "__main__":
    sys.exit(main())
