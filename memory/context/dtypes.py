"""Numbers that a language model's weights may have."""

from __future__ import annotations

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""By their names in torch."""


def check_dtype(name: str) -> None:
    """Raise ValueError on a name of other numbers, naming the choices."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: choose from {', '.join(DTYPES)}")
