"""Linear-recurrent memories: every head has a matrix as its state, which each step updates."""
