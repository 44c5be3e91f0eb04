"""What a model has read and said already, kept so that the next turn reads only what is new."""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scrubjay.agents.chat.loaded import LoadedModel

_TEXT = "conversation.json"


@dataclass
class Conversation:
    """A cache, and the text that it holds.

    Texts are compared, not tokens: what a model said need not be how its tokenizer cuts the same words.
    """

    cache: Any
    """A `PolicyCache`; how many tokens it has seen is `cache.get_seq_length()`."""
    model: LoadedModel
    """The model that reads it."""
    thread: str | None = None
    """The caller's name for it."""
    text: str = ""
    """All that was read and said."""
    pending: list[int] = field(default_factory=list)
    """Tokens at the end of `text` that were said but not read yet."""
    asked: str = ""
    """The prompt of the last answer."""
    asked_length: int = 0
    """Tokens of that prompt."""
    asked_last: int = 0
    """Its last token."""
    head: list[int] = field(default_factory=list)
    """The tokens of the first prompt, with which the cache begins."""

    def save(self, folder: Path) -> None:
        """Write it into `folder`, which may exist."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {name: value for name, value in vars(self).items() if name not in ("cache", "thread")}
        about["model"] = self.model.name
        # Under a name of its own, which the text tells: until the text is replaced, whole, the last one
        # holds.
        about["cache"] = f"cache-{uuid.uuid4().hex[:12]}.safetensors"
        self.cache.save(folder / about["cache"])
        before = _about(folder).get("cache") if (folder / _TEXT).exists() else None
        new = folder / f"{_TEXT}.new"
        new.write_text(json.dumps(about, ensure_ascii=False, indent=1), encoding="utf-8")
        new.replace(folder / _TEXT)
        if before is not None:
            (folder / Path(before).name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path, policy: Any, model: LoadedModel, thread: str | None) -> Conversation:
        """Return the conversation that `save` wrote.

        Raises ValueError on a folder that holds none, or one of a model of another name or of another policy.
        """
        from scrubjay.memory.context import PolicyCache

        try:
            about = _about(folder)
            cache = PolicyCache.load(folder / Path(about.pop("cache")).name, policy, model.model)
            name = about.pop("model")
            read = cls(cache, model, thread=thread, **about)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no saved conversation: {error}") from error
        if name != model.name:
            raise ValueError(f"{folder} holds a conversation of model {name!r}, not {model.name!r}")
        return read


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _TEXT).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder} holds no saved conversation: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{folder} holds no saved conversation: {_TEXT} is no JSON object")  # noqa: TRY004
    return about


class KeptConversations:
    """The conversations used last, at most `limit` of them; safe to use from several threads.

    Who takes a conversation has it alone: another call that would go on with it meanwhile starts anew.
    """

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"max_conversations={limit}: must not be negative")
        self._limit = limit
        self._kept: OrderedDict[int, Conversation] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, text: str, model: LoadedModel, thread: str | None) -> Conversation | None:
        """Remove and return the longest conversation that a prompt goes on with or asks again."""
        with self._lock:
            return self._pop(
                lambda kept: (
                    kept.model is model and kept.thread == thread and text.startswith((kept.text, kept.asked))
                ),
                prefer=lambda kept: len(kept.text) if text.startswith(kept.text) else len(kept.asked),
            )

    def branch(
        self, tokens: Sequence[int], model: LoadedModel, thread: str | None, policy: Any
    ) -> Conversation | None:
        """Return a conversation that has read the beginning of a prompt, the longest that another has.

        A named one is taken for it, as a name has one; others are copied, if at least half of them is of use.
        """
        with self._lock:
            found = [
                # Never the whole prompt: its last token has to be read for what comes next.
                (min(_shared(kept.head, tokens[:-1]), kept.cache.get_seq_length()), key)
                for key, kept in self._kept.items()
                if kept.model is model and kept.thread == thread and kept.cache.policy == policy
            ]
            length, key = max(found, default=(0, 0))
            if not length:
                return None
            cache = self._kept[key].cache
            seen = cache.get_seq_length()
            if thread is not None:
                del self._kept[key]
            elif 2 * length >= seen:
                cache = copy.deepcopy(cache)
            else:
                return None
        try:
            cache.crop(length - seen)
        except (ValueError, NotImplementedError):  # the policy has dropped what would be read again
            return None
        return Conversation(cache, model, thread, head=list(tokens))

    def newest(self, thread: str | None) -> Conversation | None:
        """Return the conversation used last under this name, which stays."""
        with self._lock:
            found = [kept for kept in self._kept.values() if kept.thread == thread]
            return found[-1] if found else None

    def put(self, conversation: Conversation) -> None:
        """Keep a conversation as the one used last; a name has one, and what was used longest ago may go."""
        with self._lock:
            if conversation.thread is not None:
                self._pop(lambda kept: kept.thread == conversation.thread)
            self._kept[id(conversation)] = conversation
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def forget(self, thread: str | None) -> None:
        """Drop all conversations of this name."""
        with self._lock:
            while self._pop(lambda kept: kept.thread == thread):
                pass

    def _pop(self, wanted: Any, prefer: Any = lambda kept: 0) -> Conversation | None:
        found = [key for key, kept in self._kept.items() if wanted(kept)]
        if not found:
            return None
        return self._kept.pop(max(found, key=lambda key: prefer(self._kept[key])))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts have in common from the first on."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
