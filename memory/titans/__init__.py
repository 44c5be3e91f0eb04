"""Titans: memories whose weights learn at test time, alone and beside attention."""
