"""Configurations: schema, validation, identity, composition, error messages."""
