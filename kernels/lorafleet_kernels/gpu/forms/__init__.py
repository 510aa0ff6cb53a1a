"""In which forms the kernels ship, and which one a step gets."""
