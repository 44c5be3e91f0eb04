"""What makes one vector of an observation: of its leaves, of images, of sets."""
