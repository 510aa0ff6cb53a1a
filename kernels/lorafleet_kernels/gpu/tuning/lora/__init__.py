"""Forms of the LoRA kernels, of the groups of one step at a time."""
