"""Quality benchmarks: recall of memory banks, and answers of agents over many turns."""
