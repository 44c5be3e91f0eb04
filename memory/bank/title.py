"""Text that a bank embeds for a record: its title, and then the text itself.

A passage of a document need not name what it is about, but its title does. Code is embedded alone, since its
title is the name of a file. The index of words has the title as a field of its own
(`memory/bank/file/postings.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from scrubjay.memory.bank.file.postings import TITLES, parse_metadata

_CODE_SIGN = re.compile(r"(?<=\w)[(\[]|[{}=_<>]")
_MIN_CODE_SHARE = 0.02  # of the characters; Python functions have more, prose has less
_CODE_LENGTH = 2000  # characters
_MAX_TITLE = 200  # characters; the embedding models read about 1,000


def text_to_embed(text: str, provenance: Mapping[str, Any] | str) -> str:
    """Return a record's text after its title, or after its section if it has no title.

    The provenance is a mapping or its JSON. A title that the first line contains is not repeated.
    """
    title = find_title(provenance)
    if not title or title in text[: len(title) + _MAX_TITLE].partition("\n")[0] or is_code(text):
        return text
    return f"{title}\n{text}"


def find_title(provenance: Mapping[str, Any] | str) -> str:
    """Return the title in a record's provenance, otherwise its section; an empty text if it has neither."""
    metadata = provenance if isinstance(provenance, Mapping) else parse_metadata(provenance)
    titles = (value.strip() for name in TITLES if isinstance(value := metadata.get(name), str))
    return next(filter(None, titles), "")[:_MAX_TITLE]


def is_code(text: str) -> bool:
    """Return True if a text is program code, by the share of brackets and operators in its beginning."""
    start = text[:_CODE_LENGTH]
    return len(_CODE_SIGN.findall(start)) > _MIN_CODE_SHARE * len("".join(start.split()))
