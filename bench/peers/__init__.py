"""Other systems that serve the same adapters, each in its own environment: what the engine is measured against."""
