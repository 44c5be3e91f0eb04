"""Chat with a local causal language model, with a context policy for its KV cache."""
