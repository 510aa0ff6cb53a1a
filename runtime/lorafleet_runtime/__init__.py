"""The paged multi-LoRA runtime: one process pair serves one base model and all its adapters."""

__version__ = "0.1.0"
