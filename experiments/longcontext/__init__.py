"""What a context policy keeps of a long text, and what that costs, measured in a real language model."""
