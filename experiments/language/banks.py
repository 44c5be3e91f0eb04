"""Banks of a command line: opened by file, with what is left out said on stderr."""

from __future__ import annotations

import sqlite3
import sys
from datetime import datetime
from pathlib import Path
from typing import get_args

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.memory import DamagedBankError, MemoryBank
from scrubjay.memory.bank.model import lacks_embeddings
from scrubjay.memory.bank.search.dense import stored_dimension


def open_bank(path: Path, create: bool, embeddings: EmbeddingsName | None = None) -> MemoryBank:
    """Open a bank's file. Raises ValueError if it is none, or is not there and must not be created.

    Raises ModuleNotFoundError if what `embeddings` need is not there.
    """
    if not create and not path.is_file():
        raise ValueError(f"there is no memory {path}; scrubjay memory add {path} TEXT begins one")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for a memory")
    made = None if embeddings is None else make_embeddings(embeddings)  # before a file is begun
    try:
        return MemoryBank(path, made, clock=lambda: datetime.now().astimezone())  # days are the user's
    except DamagedBankError as error:
        raise ValueError(f"{path} is no memory of Scrubjay: {error}") from None
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be opened as a memory: {error}") from error


def open_for_recall(path: Path, create: bool, embeddings: EmbeddingsName | None) -> MemoryBank:
    """Open a bank's file as `open_bank` does, and say what its embeddings, or their lack, leave out now."""
    bank = open_bank(path, create, embeddings)
    with bank.store.reading() as connection:
        written, lacking = stored_dimension(connection) is not None, lacks_embeddings(connection)
    if embeddings is None and written:
        names = " or ".join(get_args(EmbeddingsName))
        print(
            f"{path} was written with embeddings, which are left out: words alone count, and what is "
            "added now has "
            f"none; --embeddings {names} changes that",
            file=sys.stderr,
            flush=True,
        )
    if embeddings is not None and lacking:
        print(
            f"{path} has records without embeddings, which are found by words alone; exported, and "
            "imported into a new "
            f"memory with --embeddings {embeddings}, all have some",
            file=sys.stderr,
            flush=True,
        )
    return bank


def read_namespace(words: str | None) -> tuple[str, ...] | None:
    """Return "user/ada" as `("user", "ada")`, "" as `()`, and None as None."""
    return None if words is None else tuple(words.split("/")) if words else ()
