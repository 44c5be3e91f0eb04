"""The words of a command line, and lines for a terminal."""
