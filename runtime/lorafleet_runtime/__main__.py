"""`python -m lorafleet_runtime`."""

from __future__ import annotations

from lorafleet_runtime.cli import main

if __name__ == "__main__":
    main()
