"""Loggers: CSV, TensorBoard, W&B, MLflow."""
