"""Nearest-row search: find the table rows with the largest dot products with a query."""
