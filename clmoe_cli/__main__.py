"""`python -m clmoe_cli` is the command `clmoe`."""

from __future__ import annotations

import sys

from clmoe_cli.app import main

if __name__ == "__main__":
    sys.exit(main())
