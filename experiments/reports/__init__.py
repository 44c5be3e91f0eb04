"""Runs made visible: curves, films, tables and exported policies."""
