"""Forms of kernels by measurement: found once per card and model, stored, found again at every start."""
