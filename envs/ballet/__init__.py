"""Ballet: watch dancers perform one after another, then walk to the dancer of the named dance."""
