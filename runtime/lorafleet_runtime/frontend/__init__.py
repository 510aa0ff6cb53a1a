"""The front end: HTTP ports, text to tokens and back, streams. Knows no tensors."""
