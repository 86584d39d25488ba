"""What came of a run, as a page to read: from the files that a run leaves, without a model."""
