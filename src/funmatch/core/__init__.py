"""Numbers in, numbers out: losses, mixing, ensembling, geometry, rendering."""
