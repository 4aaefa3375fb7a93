"""Runs: the directory of a run and its checkpoint files."""
