"""Pure tensor mathematics of the method: no deepspeed, transformers or torch.distributed in here."""
