"""The operator's decisions: pure functions over frozen values. Knows no clock, file, network or cluster."""
