"""Paged attention of a step on a GPU."""
