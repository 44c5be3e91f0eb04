"""Command-line parsing, error reporting and terminal output."""
