"""The adapters of a step on a GPU."""
