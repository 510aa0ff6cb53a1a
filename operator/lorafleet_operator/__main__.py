"""`python -m lorafleet_operator` is `lorafleet`."""

from lorafleet_operator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
