"""Building blocks shared by several context policies."""
