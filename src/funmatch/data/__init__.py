"""Data: image sources and their splits, batches, the cache of decoded images, data sets."""
