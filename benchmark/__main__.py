"""``python -m robbench``."""

import sys

from robbench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
