"""The command line `lorafleet`."""
