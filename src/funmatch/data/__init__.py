"""Sources of images, their splits, and the data module that streams them."""
