"""Gradients of reads, of writes and of the rule, each a kernel or two."""
