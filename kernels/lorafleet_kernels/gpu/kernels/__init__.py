"""Programs in Triton's language, and nothing else."""
