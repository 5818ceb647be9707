"""Train adapters on paired latents: ``fusemix train``, see ``--help``."""

import sys

from fusemix.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
