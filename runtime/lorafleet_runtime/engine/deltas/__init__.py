"""What a step adds to the base model for its adapters, on plain operations."""
