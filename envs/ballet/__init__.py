"""Ballet: watch dancers one after the other, then walk up to the one whose dance is named."""
