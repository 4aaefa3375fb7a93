"""Exporting a student: formats, verification, model card."""
