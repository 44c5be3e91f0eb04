"""The layers of a model's cache, each of the kind that the model says it is."""
