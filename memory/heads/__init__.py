"""What single attention heads do: sinks, retrieval, and how they are watched."""
