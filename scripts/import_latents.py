"""Copy latents you already have into a store: ``fusemix import``, see ``--help``."""

import sys

from fusemix.cli.import_latents import main

if __name__ == "__main__":
    sys.exit(main())
