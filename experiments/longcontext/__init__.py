"""What a context policy keeps of a long text, and what that costs: measurements inside a real language model."""
