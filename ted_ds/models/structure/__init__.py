"""A family that has no record, found by its structure and held against transformers. Runs in a process of its own."""
