"""What a reply says about itself, in the words of each provider."""

from __future__ import annotations

from langchain_core.messages import AIMessage

_REASONS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_CUT = ("length", "max_tokens", "model_length", "max_output_tokens")


def was_cut(reply: AIMessage) -> bool:
    """Return whether the reply ended at its limit of tokens, and so may be half of what was meant."""
    metadata = reply.response_metadata
    reasons = [metadata.get(name) for name in _REASONS]
    reasons.append((metadata.get("incomplete_details") or {}).get("reason"))
    return any(str(reason).lower() in _CUT for reason in reasons)
