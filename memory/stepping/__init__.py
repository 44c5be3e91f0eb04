"""Steps of memories as collecting policies take them: folded weights, rows overwritten in place."""
