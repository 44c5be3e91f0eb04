"""Chat with a local causal language model whose cache keeps what a context policy says."""
