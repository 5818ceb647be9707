"""Send a checkpoint to the Hugging Face Hub: ``fusemix push``, see ``--help``."""

import sys

from fusemix.cli.push import main

if __name__ == "__main__":
    sys.exit(main())
