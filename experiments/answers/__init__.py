"""Question answering over long texts from a memory: store each text once, ask many questions."""
