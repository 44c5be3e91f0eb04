"""Tasks that experiments learn: environments, teams and synthetic sequences."""
