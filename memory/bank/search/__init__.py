"""How a bank finds records: by words, by meaning, by date."""
