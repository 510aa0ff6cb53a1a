"""Requests whose output is constrained, and the process that compiles their constraints."""
