"""Adapters of an engine: read, known by name, kept in tiers."""
