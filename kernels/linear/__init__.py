"""Linear memory: a matrix state per head with decay, a write rule and linear reads."""
