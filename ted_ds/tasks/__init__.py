"""How good a model is at the task, over all ranks."""
