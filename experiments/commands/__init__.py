"""The verbs of the `scrubjay` command."""
