"""Quality, measured: what a bank recalls, and what an agent says over many turns."""
