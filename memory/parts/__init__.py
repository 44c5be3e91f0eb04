"""What several memories are built of."""
