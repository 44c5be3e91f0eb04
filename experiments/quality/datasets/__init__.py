"""Data sets for recall: conversations with questions. Each question lists the records that answer it."""
