"""Checkpoints of a phase: written beside training, whole or not at all, and read back on any layout."""
