"""Checks that tell a sound pair of models from a broken one, each with a verdict in words."""
