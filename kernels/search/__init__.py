"""The rows of a table that score best against a query."""
