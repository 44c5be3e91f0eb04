"""A language model in memory, with what all who talk to it share: tokenizer, vocabulary, lock."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.chat.constraint import CALL_BEGIN
from scrubjay.memory.context.quotes import ControlTokens

_FEED_BLOCK = 512
_SAID = "said"


class LoadedModel:
    """A transformers causal LM and its tokenizer.

    Threads may share it: one block of tokens is read at a time, so that conversations take turns.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._lock = threading.Lock()

    @property
    def trained_length(self) -> int | None:
        """Tokens of the longest text that the model saw in training, where its config tells."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer: end of turn, and any other mark that only templates write.

        They are those of the model's settings, those of the tokenizer's, and what its template writes behind
        an answer, which not every tokenizer lists.
        """
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        marks = [self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids, *self._behind_answers()]
        return frozenset(end for end in [*ends, *marks] if end is not None)

    @cached_property
    def vocabulary(self) -> Any:
        """The vocabulary for the automaton of constrained answers; built on first use, in a second."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise ImportError(
                "tools and structured output need llguidance; install it with: pip install 'scrubjay[lm]'"
            ) from error
        return from_tokenizer(self.tokenizer, eos_token=sorted(self.end_tokens))

    @cached_property
    def call_begin_is_token(self) -> bool:
        """Whether `<tool_call>` is a special token of this vocabulary."""
        token = self.tokenizer.get_vocab().get(CALL_BEGIN)
        return token is not None and self.vocabulary.is_special_token(token)

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """What no text but a template's becomes."""
        return ControlTokens(self.tokenizer)

    def _behind_answers(self) -> list[int]:
        """Return the first control token that the template writes behind an answer; none if there is none."""
        if not self.tokenizer.chat_template:
            return []
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SAID}]
        try:
            written = self.tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # noqa: BLE001  a template may fail in any way
            return []
        tokens = self.tokenizer(written.rpartition(_SAID)[2], add_special_tokens=False).input_ids
        return [token for token in tokens if self.control_tokens.count([token])][:1]

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a prompt, whose marks are in the text already."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def read(self, tokens: Sequence[int], cache: Any) -> Float[Tensor, "vocabulary"]:
        """Let the model read tokens into the cache, in blocks; return the logits of what comes next."""
        logits = None
        size = cache.call_length(len(tokens), _FEED_BLOCK)
        for begin in range(0, len(tokens), size):
            block = torch.tensor([list(tokens[begin : begin + size])], device=self.model.device)
            with self._lock, torch.no_grad():
                logits = self.model(input_ids=block, cache=cache, logits_to_keep=1).logits
        if logits is None:
            raise ValueError("there is nothing to read: the prompt has no new tokens")
        return logits[0, -1].float()


_loaded: weakref.WeakValueDictionary[Any, LoadedModel] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load(source: Any, dtype: torch.dtype, device: str, trust: bool = False) -> LoadedModel:
    """Return the model of a name, folder, GGUF file or ready `(model, tokenizer)`; loaded once per process.

    It stays in memory as long as somebody holds it. `trust` admits pickled weights.
    """
    from scrubjay.memory import context

    with _loading:
        if isinstance(source, tuple):
            model, tokenizer = source
            key: Any = (id(model), id(tokenizer))
            if key not in _loaded:
                name = getattr(model, "name_or_path", "") or type(model).__name__
                found = LoadedModel(model, tokenizer, Path(name).name)
                _loaded[key] = found
                return found
        else:
            key = (str(source), dtype, device, trust)
            if key not in _loaded:
                loaded = context.load_model(source, dtype, device, under_policy=True, trust=trust)
                found = LoadedModel(*loaded, name=str(source))
                _loaded[key] = found
                return found
        return _loaded[key]
