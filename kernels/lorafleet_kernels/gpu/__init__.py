"""The operations on GPUs, in Triton. `reference.py` says what each of them computes."""
