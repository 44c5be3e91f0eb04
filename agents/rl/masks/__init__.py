"""Action masks: their validity, and how an environment is asked for them."""
