"""See what an agent remembers: a trace of an episode, and a page that shows it."""
