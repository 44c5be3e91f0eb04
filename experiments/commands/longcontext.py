"""`scrubjay longcontext`: benchmark context policies of a language model on long texts."""

from __future__ import annotations

from scrubjay.experiments.longcontext.commands import longcontext as run

__all__ = ["run"]
