"""Data types supported for the weights of a language model."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Names of torch dtypes."""


def check_dtype(name: str) -> None:
    """Raise ValueError on an unsupported dtype name; the message lists the choices."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: choose from {', '.join(DTYPES)}")
