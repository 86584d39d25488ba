"""Corpora become packed sequences: a pure function of the recipe, the seed and the number of the sequence."""
