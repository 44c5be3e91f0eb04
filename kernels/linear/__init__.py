"""Linear recurrences: a matrix per head that fades, is written by a rule, and is read."""
