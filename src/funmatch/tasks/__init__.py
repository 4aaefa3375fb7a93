"""What a prediction means: one folder per task."""
