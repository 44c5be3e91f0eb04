"""Time and traffic per token if keys and values lie in other processes, against the full cache."""
