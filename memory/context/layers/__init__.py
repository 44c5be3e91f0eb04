"""Cache layers, one class for each type of layer in a model's config."""
