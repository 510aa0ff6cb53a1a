"""The control plane: reads the objects, plans, and acts in one of three worlds."""

__version__ = "0.1.0"
