"""Where a recipe becomes objects: models, filters, engines, batches."""
