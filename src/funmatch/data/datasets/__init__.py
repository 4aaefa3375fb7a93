"""Data sets: builders, file layouts, label tables, splits."""
