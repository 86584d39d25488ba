"""What a recipe comes to, and all that is held against it before weights are read; without torch."""
