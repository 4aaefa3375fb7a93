"""Distillation objectives: one file per method."""
