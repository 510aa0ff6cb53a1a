"""Decoder families, LoRA layers and the loaders of their weights."""
