"""The engine's decisions: pages, residency, scheduling. Plain Python; knows no torch, clock or I/O."""
