"""Regression of a number of each example."""
