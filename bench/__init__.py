"""Measurements: `python -m bench.NAME [--quick]`. Each runs its correctness gate first."""
