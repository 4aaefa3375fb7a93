"""Pure functions: losses, mixing, ensembling, crop geometry, rendering."""
