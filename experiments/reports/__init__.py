"""Reports on runs: curves, videos, tables and exported policies."""
