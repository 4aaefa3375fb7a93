"""Lightning modules, data module, callbacks and loggers."""
