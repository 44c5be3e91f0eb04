"""Linear-recurrent memories: one matrix per head, updated by a write rule."""
