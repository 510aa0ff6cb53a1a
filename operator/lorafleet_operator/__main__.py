"""`python -m lorafleet_operator` is `lorafleet`."""

from lorafleet_operator.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
