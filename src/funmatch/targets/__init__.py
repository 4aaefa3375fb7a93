"""Teacher targets: online, per image, or recorded."""
