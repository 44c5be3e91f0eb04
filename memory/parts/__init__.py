"""Building blocks shared by several memories."""
