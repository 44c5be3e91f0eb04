"""Reading a text that is longer than a model's view."""
