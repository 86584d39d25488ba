"""Text in, batches out: sources, held-out split, packing, task sets and the loader."""
