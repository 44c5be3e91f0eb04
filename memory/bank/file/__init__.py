"""SQLite file of a memory bank: records and tables."""
