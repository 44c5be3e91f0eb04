"""Data sets for recall: conversations with questions that list the records with their answers."""
