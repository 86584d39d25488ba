"""Where a run's numbers can go."""
