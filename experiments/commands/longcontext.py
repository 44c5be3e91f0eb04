"""`scrubjay longcontext`: what context policies keep of a long text, measured in a real language model."""

from __future__ import annotations

from scrubjay.experiments.longcontext.commands import longcontext as run

__all__ = ["run"]
