"""Multi-LoRA operations over a ragged batch. `reference` is the specification."""
