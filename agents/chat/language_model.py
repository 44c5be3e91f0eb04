"""Language model in memory, with the tokenizer, vocabulary and lock shared by all its users."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.chat.constraint import CALL_BEGIN
from scrubjay.memory.context.foreign.panics import no_panics
from scrubjay.memory.context.foreign.rendering import render_chat
from scrubjay.memory.context.policies.budget import get_window
from scrubjay.memory.context.quotes import ControlTokens, select_template

_FEED_BLOCK = 512
_SILENT_SECONDS = 3.0
_LINE_SECONDS = 30.0
_ANSWER = "said"


class LoadedModel:
    """Causal LM of transformers with its tokenizer; thread-safe.

    A lock lets one thread at a time run the model on a block of tokens. Concurrent conversations therefore
    alternate block by block.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._lock = threading.Lock()

    @property
    def trained_length(self) -> int | None:
        """Maximum sequence length in training, in tokens; None if the model's config does not contain it."""
        return get_window(self.model)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer: the end-of-turn token and all other special tokens.

        These tokens come from the model's generation config, the tokenizer and the chat template. A template
        may end an answer with a token that the tokenizer does not list as special.
        """
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        marks = [self.tokenizer.eos_token_id, *self.tokenizer.all_special_ids, *self._behind_answers()]
        return frozenset(end for end in [*ends, *marks] if end is not None)

    @cached_property
    def vocabulary(self) -> Any:
        """Vocabulary for constrained decoding; built on first use, which takes about a second."""
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise ImportError(
                "tools and structured output need llguidance; install it with: pip install 'scrubjay[lm]'"
            ) from error
        with no_panics(self.name):
            return from_tokenizer(self.tokenizer, eos_token=sorted(self.end_tokens))

    @cached_property
    def call_begin_is_token(self) -> bool:
        """True if `<tool_call>` is a special token of this vocabulary."""
        token = self.tokenizer.get_vocab().get(CALL_BEGIN)
        return token is not None and self.vocabulary.is_special_token(token)

    @cached_property
    def control_tokens(self) -> ControlTokens:
        """Control tokens, which only the chat template may write into a prompt."""
        return ControlTokens(self.tokenizer)

    def _behind_answers(self) -> list[int]:
        """Return the control tokens that the templates, with and without tools, write after an answer."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        ends = []
        for has_tools in (False, True):
            try:
                template = select_template(self.tokenizer, has_tools=has_tools)
                prompt = render_chat(self.tokenizer, template, turns) if template else ""
            except ValueError:  # a template may fail
                prompt = ""
            tokens = self.tokenizer(prompt.rpartition(_ANSWER)[2], add_special_tokens=False).input_ids
            ends += [token for token in tokens if self.control_tokens.count([token])][:1]
        return ends

    def tokenize(self, text: str) -> list[int]:
        """Tokenize a prompt. The special tokens must already be in its text."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def read(self, tokens: Sequence[int], cache: Any) -> Float[Tensor, "vocabulary"]:
        """Run the model on `tokens`, update `cache` and return the next token's logits.

        Long inputs are processed in several blocks of tokens. If this takes long, stderr shows the progress.
        """
        logits = None
        size = cache.call_length(len(tokens), _FEED_BLOCK)
        with ReadingDisplay(len(tokens)) as display:
            for begin in range(0, len(tokens), size):
                block = torch.tensor([list(tokens[begin : begin + size])], device=self.model.device)
                with self._lock, torch.no_grad():
                    logits = self.model(input_ids=block, cache=cache, logits_to_keep=1).logits
                display.update(min(begin + size, len(tokens)))
        if logits is None:
            raise ValueError("the prompt has no new tokens; pass at least one token")
        return logits[0, -1].float()


class ReadingDisplay:
    """Progress of reading a prompt, on stderr, if it takes more than three seconds.

    On a terminal one line is rewritten. Elsewhere a line is printed every 30 seconds.
    """

    def __init__(self, total: int) -> None:
        self._total, self._width = total, 0
        self._is_terminal = sys.stderr.isatty()
        self._start = self._last_print = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width and self._is_terminal:  # the answer may follow in the same terminal
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)

    def update(self, done: int) -> None:
        """Print the number of tokens read, if it is time and more are left."""
        now = time.monotonic()
        pause = _LINE_SECONDS if not self._is_terminal else 0.5 if self._width else _SILENT_SECONDS
        if now - self._last_print < pause or done >= self._total:
            return
        self._last_print = now
        left = (self._total - done) * (now - self._start) / done
        line = f"read {done:,} of {self._total:,} tokens  ETA {left:,.0f} s"
        padded_line = f"\r{line:{self._width}}" if self._is_terminal else f"{line}\n"
        self._width = max(self._width, len(line))
        print(padded_line, end="", file=sys.stderr, flush=True)


_loaded_models: weakref.WeakValueDictionary[Any, LoadedModel] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load(source: Any, dtype: torch.dtype, device: str, trust: bool = False) -> LoadedModel:
    """Load a model from a name, folder, GGUF file or `(model, tokenizer)` pair.

    A model is loaded only once per process: the next call returns the same object. The model is freed when
    nothing refers to this object any more. `trust` allows pickled weights.
    """
    from scrubjay.memory import context

    key: Any = tuple(map(id, source)) if isinstance(source, tuple) else (str(source), dtype, device, trust)
    with _loading:
        loaded_model = _loaded_models.get(key)
        if loaded_model is None:
            if isinstance(source, tuple):
                model, tokenizer = source
            else:
                model, tokenizer = context.load_model(source, dtype, device, under_policy=True, trust=trust)
            loaded_model = _loaded_models[key] = LoadedModel(model, tokenizer, get_name(source))
        return loaded_model


def get_name(source: Any) -> str:
    """Return the name of a model that was passed by name or as a `(model, tokenizer)` pair."""
    if isinstance(source, tuple):
        return Path(getattr(source[0], "name_or_path", "") or type(source[0]).__name__).name
    return str(source)
