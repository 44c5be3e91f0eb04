"""Conversations with their KV caches, stored so that the next turn processes only new tokens."""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrubjay.agents.chat.language_model import LoadedModel

_TEXT = "conversation.json"
_MAX_TEXT_BYTES = 2**28
"""Maximum bytes of the text file, above that of a conversation of ten million tokens. A file of another size
is not from `Conversation.save`, and reading it could take all memory."""
_TOKENS = {
    "pending": "a list of tokens of the model",
    "head": "a list of tokens of the model",
    "last_prompt_token": "a token of the model",
    "last_prompt_length": "a number of tokens",
}
"""Descriptions of the fields that have tokens or numbers. All other fields are texts."""


@dataclass
class Conversation:
    """Conversation: its KV cache, and the text that the cache represents.

    A new prompt is compared with this text, not with the tokens in the cache. The tokens that the model
    generated may differ from the tokens that the tokenizer returns for the same text.
    """

    cache: Any
    """`PolicyCache` of the conversation; `cache.get_seq_length()` is the number of processed tokens."""
    model: LoadedModel
    """Model that the cache belongs to."""
    thread: str | None = None
    """Name given by the caller; None if unnamed."""
    text: str = ""
    """Text of all prompts and answers so far."""
    pending: list[int] = field(default_factory=list)
    """Tokens at the end of `text` that were generated but not yet processed by the model."""
    last_prompt: str = ""
    """Prompt that was written for the last answer."""
    last_prompt_length: int = 0
    """Number of tokens of `last_prompt`."""
    last_prompt_token: int = 0
    """Last token of `last_prompt`."""
    head: list[int] = field(default_factory=list)
    """Tokens of the conversation's first prompt; the cache begins with these tokens."""

    def crop(self, length: int) -> bool:
        """Crop the cache to `length` tokens; return False if the cache cannot be cropped."""
        try:
            self.cache.crop(length - self.cache.get_seq_length())
        except (ValueError, NotImplementedError):
            return False
        return True

    def save(self, folder: Path) -> None:
        """Save the conversation to `folder`, which is created if it does not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {name: value for name, value in vars(self).items() if name not in ("cache", "thread")}
        metadata["model"] = self.model.name
        # The cache file has a unique name, stored in the text file. Until the text file is replaced, which is
        # atomic, the previous conversation stays valid.
        metadata["cache"] = f"cache-{uuid.uuid4().hex[:12]}.safetensors"
        self.cache.save(folder / metadata["cache"])
        before = _read_metadata(folder).get("cache") if (folder / _TEXT).exists() else None
        new = folder / f"{_TEXT}.new"
        new.unlink(missing_ok=True)  # left by a process that crashed, or a link to another file
        new.write_text(json.dumps(metadata, ensure_ascii=False, indent=1), encoding="utf-8")
        new.replace(folder / _TEXT)
        if before is not None:
            (folder / Path(before).name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, policy: Any, model: LoadedModel, thread: str | None) -> Conversation:
        """Load a conversation written by `save`.

        Raises ValueError if the folder holds no conversation, or a conversation of another model or policy.
        """
        from scrubjay.memory.context import PolicyCache

        try:
            metadata = _read_metadata(folder)
            _check_fields(folder, metadata, len(model.model.get_input_embeddings().weight))
            cache = PolicyCache.load(folder / Path(metadata.pop("cache")).name, policy, model.model)
            name = metadata.pop("model")
            conversation = cls(cache, model, thread, **metadata)
        except OSError as error:
            raise ValueError(f"{folder} holds no saved conversation: {error}") from error
        if name != model.name:
            raise ValueError(
                f"{folder} holds a conversation of model {name!r}; load it with this model, not with "
                f"{model.name!r}"
            )
        return conversation


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / _TEXT
    try:
        if file.exists() and not file.is_file():
            raise ValueError(f"{_TEXT} is not a regular file")
        if (size := file.stat().st_size) > _MAX_TEXT_BYTES:
            raise ValueError(f"{_TEXT} has {size:,} bytes: the limit is {_MAX_TEXT_BYTES:,}")
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{folder} holds no saved conversation: byte {error.start} of {_TEXT} is not valid UTF-8"
        ) from error
    except RecursionError:
        raise ValueError(f"{folder} holds no saved conversation: {_TEXT} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{folder} holds no saved conversation: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{folder} holds no saved conversation: {_TEXT} is not a JSON object")  # noqa: TRY004
    return metadata


def _check_fields(folder: Path, metadata: dict[str, Any], num_tokens: int) -> None:
    """Raise ValueError unless the fields are those of `Conversation.save`, with tokens below `num_tokens`."""
    expected_names = {field.name for field in fields(Conversation)} - {"thread"}
    if metadata.keys() != expected_names:
        raise ValueError(
            f"{folder} holds no saved conversation of this version of Scrubjay: the fields in {_TEXT} are "
            f"{', '.join(sorted(metadata))}; expected {', '.join(sorted(expected_names))}"
        )
    for name, value in metadata.items():
        if name in _TOKENS:
            limit = _MAX_TEXT_BYTES if name == "last_prompt_length" else num_tokens
            tokens = value if name in ("pending", "head") else [value]
            is_valid = isinstance(tokens, list) and all(type(t) is int and 0 <= t < limit for t in tokens)
        else:
            is_valid = isinstance(value, str)
        if not is_valid:
            expected = _TOKENS.get(name, "a text")
            raise ValueError(
                f"{folder} holds no saved conversation: {name}={value!r:.80} in {_TEXT}: must be {expected}"
            )


class ConversationStore:
    """Thread-safe store of at most `limit` conversations; the least recently used one is dropped first.

    `take` removes a conversation from the store, so that only one call uses this conversation at a time. A
    concurrent call starts a new conversation.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"max_conversations={limit}: must not be negative")
        self._limit = limit
        self._conversations: list[Conversation] = []  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._conversations)

    def take(self, text: str, model: LoadedModel, thread: str | None) -> Conversation | None:
        """Remove and return the longest conversation that the prompt `text` continues; None if there is none.

        A prompt continues a conversation if the prompt begins with the conversation's complete text or with
        its last prompt.
        """
        with self._lock:
            lengths = {
                index: len(one.text if text.startswith(one.text) else one.last_prompt)
                for index, one in enumerate(self._conversations)
                if one.model is model
                and one.thread == thread
                and text.startswith((one.text, one.last_prompt))
            }
            return self._conversations.pop(max(lengths, key=lengths.__getitem__)) if lengths else None

    def branch(
        self, tokens: Sequence[int], model: LoadedModel, thread: str | None, policy: Any
    ) -> Conversation | None:
        """Return a new conversation that reuses a stored cache; None if no cache can be reused.

        The method selects the cache that has the longest common beginning with the prompt `tokens`, and
        crops this cache. If `thread` is a name, the old conversation of this name is removed from the store,
        because a name belongs to only one conversation. If `thread` is None, the cache is copied; at least
        half of the cache must then be reusable.
        """
        with self._lock:
            lengths = {
                # Never the whole prompt: its last token must be processed to get the next logits.
                index: min(_count_shared(one.head, tokens[:-1]), one.cache.get_seq_length())
                for index, one in enumerate(self._conversations)
                if one.model is model and one.thread == thread and one.cache.policy == policy
            }
            index = max(lengths, key=lengths.__getitem__, default=0)
            length = lengths.get(index, 0)
            if not length:
                return None
            cache = self._conversations[index].cache
            if thread is not None:
                del self._conversations[index]
            elif 2 * length >= cache.get_seq_length():
                cache = copy.deepcopy(cache)
            else:
                return None
        conversation = Conversation(cache, model, thread, head=list(tokens))
        # A cache cannot be cropped if the policy has dropped tokens of the shared beginning.
        return conversation if conversation.crop(length) else None

    def latest(self, thread: str | None) -> Conversation | None:
        """Return the most recently used conversation named `thread`; None if there is none.

        The conversation stays in the store.
        """
        with self._lock:
            matches = (one for one in reversed(self._conversations) if one.thread == thread)
            return next(matches, None)

    def put(self, conversation: Conversation) -> None:
        """Store a conversation as the most recently used.

        A stored conversation of the same name is replaced. If the store holds more than `limit`
        conversations, the least recently used conversation is dropped.
        """
        name = conversation.thread
        with self._lock:
            others = [one for one in self._conversations if name is None or one.thread != name]
            self._conversations = [*others, conversation]
            del self._conversations[: -self._limit or None]

    def forget(self, thread: str | None) -> None:
        """Delete all conversations named `thread`; None deletes all unnamed conversations."""
        with self._lock:
            self._conversations = [one for one in self._conversations if one.thread != thread]


def _count_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common beginning of two token sequences."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
