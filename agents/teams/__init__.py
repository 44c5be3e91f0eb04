"""Teams of agents: graph attention, a trust region, and the games that their actors play."""
