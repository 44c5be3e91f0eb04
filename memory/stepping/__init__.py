"""Steps of memories as collecting policies take them: weights folded beforehand, rows overwritten in place."""
