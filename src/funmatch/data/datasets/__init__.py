"""Data sets: file layouts, label tables, splits."""
