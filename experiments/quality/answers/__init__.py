"""How well questions about long texts are answered from a memory: inject once, ask often."""
