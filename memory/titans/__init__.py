"""Titans: memories whose weights learn at test time, with and without attention."""
