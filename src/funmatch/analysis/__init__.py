"""Runs side by side: summaries, tables, curves, plots, reports."""
