"""Forms of the attention kernels, one for all decodes of an engine, and one for all its prompts."""
