"""Regression of one or several numbers per example."""
