"""A local chat model for the command's verbs, whose mistakes are told as one line."""

from __future__ import annotations

from typing import Any


def open_local_model(**settings: Any) -> Any:
    """Return a `LocalChatModel` with these settings. Raises ValueError on one that cannot work."""
    from pydantic import ValidationError

    from scrubjay.agents import LocalChatModel
    from scrubjay.experiments.runs.device import resolve_device

    settings["device"] = str(resolve_device(settings["device"]))
    try:
        return LocalChatModel(**settings)
    except ValidationError as error:
        # Without the frame that pydantic puts around the reason.
        reasons = (part["msg"].removeprefix("Value error, ") for part in error.errors())
        raise ValueError("; ".join(reasons)) from None
