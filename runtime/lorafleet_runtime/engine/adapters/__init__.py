"""Adapters of an engine: read, kept in tiers, and what a step needs of them."""
