"""The commands: one module each, and the worker process of a rank."""
