"""Nearest-row search: the rows of a table with the largest products with a query."""
