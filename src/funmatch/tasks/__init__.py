"""Tasks, such as classification and regression: one folder each."""
