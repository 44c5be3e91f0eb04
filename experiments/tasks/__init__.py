"""What is to be learned: environments, teams and synthetic sequences, as data."""
