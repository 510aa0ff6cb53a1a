"""The engine: schedule, run, sample. Knows token ids; knows no text and no HTTP."""
