"""Put several checkpoints side by side in one: ``fusemix ensemble``, see ``--help``."""

import sys

from fusemix.cli.ensemble import main

if __name__ == "__main__":
    sys.exit(main())
