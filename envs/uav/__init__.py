"""UAV base stations that serve users on the ground."""
