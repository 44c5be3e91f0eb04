"""Steppers of memories for rollout collection: folded weights and in-place updates."""
