"""One file a policy: what a cache keeps of a text."""
