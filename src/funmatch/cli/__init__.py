"""The commands. Only here is a configuration read."""
