"""Memory tasks registered with gymnasium."""
