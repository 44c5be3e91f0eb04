"""Chat models and memory banks for the subcommands of `scrubjay`; errors have one-line messages."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.experiments.files import parse as parse_json
from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.embedding_model import lacks_embeddings, read_dimension

_PROVIDER = re.compile(r"[a-z][a-z0-9_-]+:[^/\\]+.*")


def open_chat_model(
    name: str, seconds: float, temperature: float | None, max_tokens: int | None, **local: Any
) -> Any:
    """Return the chat model with this name: "provider:name" for a LangChain model, or a local model.

    A local model is loaded before this function returns. `seconds` is the timeout of a call to a provider.
    `local` holds options of `LocalChatModel`. Raises ValueError or ImportError with instructions.
    """
    if not _PROVIDER.fullmatch(name) or Path(name).exists():
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
    """Return a `LocalChatModel` with these settings; None selects the default of a setting.

    Raises ValueError on an invalid setting.
    """
    from pydantic import ValidationError

    from scrubjay.agents import LocalChatModel
    from scrubjay.experiments.resources import resolve_device

    settings = {name: value for name, value in settings.items() if value is not None}
    settings["device"] = str(resolve_device(settings["device"]))
    try:
        return LocalChatModel(**settings)
    except ValidationError as error:
        # Keep the reasons without pydantic's wrapper text.
        reasons = (part["msg"].removeprefix("Value error, ") for part in error.errors())
        raise ValueError("; ".join(reasons)) from None


def open_bank(
    path: Path, create: bool, embeddings: EmbeddingsName | None = None, foreign: bool = False
) -> MemoryBank:
    """Open the memory bank in a file; `foreign` if it comes from someone else.

    Raises ValueError if the file is not a memory bank, or if it is missing and `create` is False. Raises
    ModuleNotFoundError if a package that `embeddings` needs is missing.
    """
    if not create and not path.is_file():
        raise ValueError(
            f"memory bank {path} does not exist; create it with: scrubjay memory add {path} TEXT"
        )
    if not create and path.stat().st_size == 0 and not path.with_name(f"{path.name}-wal").exists():
        # SQLite would write a new bank into the file, which may be a link to the output of this command.
        raise ValueError(f"{path} is empty; fill it with: scrubjay memory add {path} TEXT")
    if not path.parent.is_dir():
        raise ValueError(f"folder {path.parent} does not exist")
    embedding_model = None if embeddings is None else make_embeddings(embeddings)  # before a file is created
    try:
        # The clock is the local time of the user.
        return MemoryBank(path, embedding_model, clock=lambda: datetime.now().astimezone(), foreign=foreign)
    except DamagedBankError as error:
        raise ValueError(f"{path} is not a memory bank: {error}") from None
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be opened as a memory bank: {error}") from error


def open_for_recall(path: Path, create: bool, embeddings: EmbeddingsName | None, foreign: bool) -> MemoryBank:
    """Open a memory bank as `open_bank` does, and warn on stderr if embeddings are missing or unused."""
    bank = open_bank(path, create, embeddings, foreign)
    with bank.store.reading() as connection:
        has_embeddings, some_missing = read_dimension(connection) is not None, lacks_embeddings(connection)
    if embeddings is None and has_embeddings:
        names = " or ".join(get_args(EmbeddingsName))
        print(
            f"{path} was written with embeddings, which are left out: this command searches by words alone, "
            f"and new records get no embeddings; pass --embeddings {names} to use embeddings",
            file=sys.stderr,
            flush=True,
        )
    if embeddings is not None and some_missing:
        print(
            f"{path} has records without embeddings, which are found by words alone; to add the missing "
            f"embeddings, export the bank and import it into a new bank with --own --embeddings {embeddings}",
            file=sys.stderr,
            flush=True,
        )
    return bank


def read_namespace(name: str | None) -> tuple[str, ...] | None:
    """Split a namespace at slashes: "user/ada" gives `("user", "ada")`, "" gives `()`, None gives None.

    A JSON list may have names with slashes: '["user", "a/b"]' gives `("user", "a/b")`. Raises ValueError if
    the text begins like such a list, but is none.
    """
    if name is None or not name:
        return None if name is None else ()
    if not name.startswith('["'):
        return tuple(name.split("/"))
    parts = parse_json(name, f"namespace {name!r}")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f'namespace {name!r}: write a JSON list of names, such as \'["user", "a/b"]\'')
    return tuple(parts)


def format_namespace(namespace: Sequence[str]) -> str:
    """Return a namespace as `read_namespace` reads it."""
    text = "/".join(namespace)
    is_plain = len(text.split("/")) == max(len(namespace), 1) and not text.startswith('["')
    return text if is_plain else json.dumps(namespace, ensure_ascii=False)
