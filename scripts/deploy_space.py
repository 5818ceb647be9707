"""Make a Hugging Face Space of this checkout: ``fusemix deploy-space``, see ``--help``."""

import sys

from fusemix.cli.deploy_space import main

if __name__ == "__main__":
    sys.exit(main())
