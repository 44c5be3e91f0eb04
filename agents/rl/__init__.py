"""Policies of one agent that hold any memory, what samples them and what trains them."""
