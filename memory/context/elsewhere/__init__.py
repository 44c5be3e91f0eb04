"""Keys and values of a cache that live outside the process of the model."""
