"""What several context policies are built of."""
