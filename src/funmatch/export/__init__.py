"""Export of a student: file formats and model card."""
