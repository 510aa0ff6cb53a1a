"""`python -m lorafleet_gateway`."""

from __future__ import annotations

import sys

from lorafleet_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
