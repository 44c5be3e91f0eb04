"""Inner loops of the long-context core: each op beside its plain torch reference."""

from scrubjay.kernels.chunk_retrieval import chunk_retrieval

__all__ = ["chunk_retrieval"]
