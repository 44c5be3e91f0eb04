"""Chat models for the subcommands of `scrubjay`; an error while loading a model has a one-line message."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console

_PROVIDER = re.compile(r"[a-z][a-z0-9_-]+:[^/\\]+.*")


def open_chat_model(
    name: str, seconds: float, temperature: float | None, max_tokens: int | None, **local: Any
) -> Any:
    """Return the chat model with this name: "provider:name" for a LangChain model, or a local model.

    A local model is loaded before this function returns. `seconds` is the timeout of a call to a provider.
    `local` holds options of `LocalChatModel`. Raises ValueError or ImportError with instructions.
    """
    if not _PROVIDER.fullmatch(name) or Path(name).exists():
        temperature, max_tokens = temperature or 0.0, 512 if max_tokens is None else max_tokens
        model = open_local_model(model=name, temperature=temperature, max_tokens=max_tokens, **local)
        with Console(stderr=True).status("loading the model"):
            _ = model.loaded_model  # load before any output
        return model
    try:
        from langchain.chat_models import init_chat_model
    except ImportError:
        provider = name.partition(":")[0].replace("_", "-")
        raise ImportError(
            f"model={name!r} needs missing packages: pip install langchain langchain-{provider}"
        ) from None
    try:
        return init_chat_model(name, temperature=temperature, max_tokens=max_tokens, timeout=seconds)
    except ImportError:
        raise
    except Exception as error:  # such as a missing key; each provider has its own error classes
        raise ValueError(f"model={name!r}: {error}") from error


def open_local_model(**settings: Any) -> Any:
    """Return a `LocalChatModel` with these settings. Raises ValueError on an invalid setting."""
    from pydantic import ValidationError

    from scrubjay.agents import LocalChatModel
    from scrubjay.experiments.runs.device import resolve_device

    settings["device"] = str(resolve_device(settings["device"]))
    try:
        return LocalChatModel(**settings)
    except ValidationError as error:
        # Keep the reasons without pydantic's wrapper text.
        reasons = (part["msg"].removeprefix("Value error, ") for part in error.errors())
        raise ValueError("; ".join(reasons)) from None
