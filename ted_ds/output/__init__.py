"""What a run leaves: folders, numbers, the screen, an exported student."""
