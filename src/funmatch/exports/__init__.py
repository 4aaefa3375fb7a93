"""Students as files for others: each kind is written here, and read again to be compared."""
