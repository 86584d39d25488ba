"""Transformers models as the method sees them: families, taps, heads, cutting and loading."""
