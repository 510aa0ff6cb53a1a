"""The gateway's decisions: routing, name resolution. Knows no framework, clock or I/O."""
