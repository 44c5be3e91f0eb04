"""Generate one answer of a language model token by token, and leave the cache ready for the next turn."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.chat.constraint import CALL_BEGIN, Constraint
from scrubjay.agents.chat.conversations import Conversation
from scrubjay.agents.chat.language_model import LoadedModel
from scrubjay.memory.context.policies.budget import BudgetPolicy


@dataclass(frozen=True)
class AnswerConfig:
    """Sampling settings and stop conditions of one answer. Raises ValueError on invalid values."""

    max_tokens: int = 512
    """Maximum number of tokens of the answer."""
    temperature: float = 0.0
    """Softmax temperature; 0 selects the most likely token (greedy decoding)."""
    top_p: float = 0.95
    """Nucleus sampling: total probability of the most likely tokens to sample from (Holtzman et al. 2020)."""
    seed: int | None = None
    """Seed of the sampling; None selects a random seed."""
    stop: tuple[str, ...] = ()
    """Stop sequences; the answer ends before the first stop sequence in its text."""
    call_bias: float = 0.0
    """Logit bias of the token that begins a tool call; applied only to the first token of the answer."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or positive and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")

    def choose(self, logits: Float[Tensor, "vocabulary"], generator: torch.Generator) -> int:
        """Return one token; a token with logit -inf is never sampled."""
        if self.temperature == 0:
            return int(logits.argmax())
        # Subtract the maximum first: a small temperature must not overflow.
        probabilities = ((logits - logits.max()).cpu() / self.temperature).softmax(-1)
        if self.top_p < 1:
            sorted_probabilities, tokens = probabilities.sort(descending=True)
            # A token stays if the tokens before it sum to less than `top_p`; the most likely one always
            # stays.
            sorted_probabilities[sorted_probabilities.cumsum(-1) - sorted_probabilities >= self.top_p] = 0
            return int(tokens[torch.multinomial(sorted_probabilities, 1, generator=generator)])
        return int(torch.multinomial(probabilities, 1, generator=generator))


class Answer:
    """Answer as an iterable of text pieces, to be iterated over once.

    A piece comes from one or more tokens and may be empty. The conversation's cache already contains all
    tokens of `prompt` except `new_tokens`.

    Raises ValueError if `max_tokens` is too small for the shortest answer that the constraint allows. Raises
    ValueError also if the prompt exceeds the model's training length. Policies that move tokens to other
    positions (`ContextPolicy.moves_positions`) have no such limit, unless their budget exceeds this length.
    """

    def __init__(
        self,
        loaded_model: LoadedModel,
        conversation: Conversation,
        prompt: str,
        new_tokens: Sequence[int],
        config: AnswerConfig,
        constraint: Constraint | None = None,
    ) -> None:
        """Prepare an answer; the model is run only during iteration.

        Args:
            loaded_model: Model that generates the answer.
            conversation: Conversation whose cache contains the earlier tokens. The answer is added to it.
            prompt: Complete prompt.
            new_tokens: Tokens at the end of `prompt` that the model has not processed.
            config: Sampling settings and stop conditions.
            constraint: Grammar constraint; None for free text.
        """
        self._loaded_model, self._conversation, self._prompt = loaded_model, conversation, prompt
        self._new_tokens, self._config, self._constraint = new_tokens, config, constraint
        self.cached_tokens = conversation.cache.get_seq_length()
        self.prompt_tokens = self.cached_tokens + len(new_tokens)
        self.tokens = 0
        self.finish_reason = "stop"
        if self._exceeds_training_length(self.prompt_tokens + 1):
            raise ValueError(
                f"the prompt has {self.prompt_tokens} tokens, but {loaded_model.name} was trained on at most "
                f"{loaded_model.trained_length} tokens; shorten the prompt, or choose a policy that limits "
                "token positions, such as policy='sinks', with a budget that is not larger"
            )
        self._is_closed = False
        self._text = AnswerText(loaded_model.tokenizer, config.stop)
        self._generator = torch.Generator()
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)
        shortest = [] if constraint is None else constraint.shortest_end()
        # For some string patterns no ending is found; then the token limit may truncate the answer.
        self._can_close_in_time = shortest is not None
        if shortest and len(shortest) > config.max_tokens:
            raise ValueError(
                f"max_tokens={config.max_tokens}: the shortest valid answer has {len(shortest)} tokens; "
                "raise max_tokens"
            )

    def __iter__(self) -> Generator[str]:
        conversation = self._conversation
        logits = self._loaded_model.read(self._new_tokens, conversation.cache)
        conversation.text = conversation.last_prompt = self._prompt
        conversation.last_prompt_length = self.prompt_tokens
        conversation.last_prompt_token = self._new_tokens[-1]
        conversation.pending = []
        try:
            while not self._has_ended():
                if conversation.pending:
                    unread, conversation.pending = conversation.pending, []
                    logits = self._loaded_model.read(unread, conversation.cache)
                for token in self._next(logits):
                    if token in self._loaded_model.end_tokens:
                        self._is_closed = True
                        break
                    conversation.pending.append(token)
                    self.tokens += 1
                    yield self._text.push(token)
                    if self._text.is_stopped:
                        break
            if rest := self._text.finish():
                yield rest
        finally:
            # Also if the caller stops iterating: the next turn must contain only the text that was yielded.
            self._rewind()

    def _has_ended(self) -> bool:
        if (
            self._is_closed
            or self._text.is_stopped
            or (self._constraint is not None and self._constraint.is_finished)
        ):
            return True
        if self.tokens >= self._config.max_tokens or self._exceeds_training_length(
            self.prompt_tokens + self.tokens
        ):
            self.finish_reason = "length"
            return True
        return False

    def _exceeds_training_length(self, length: int) -> bool:
        """Return True if `length` tokens need positions beyond the model's training length."""
        longest, policy = self._loaded_model.trained_length, self._conversation.cache.policy.inner
        if policy.moves_positions and isinstance(policy, BudgetPolicy):
            length = min(length, policy.num_tokens + policy.margin)
        elif policy.moves_positions:
            return False
        return longest is not None and length > longest

    def _next(self, logits: Float[Tensor, "vocabulary"]) -> list[int]:
        """Return the next token, or several tokens if the constraint or the token limit leaves no choice."""
        constraint, choose = self._constraint, self._config.choose
        if constraint is None:
            return [choose(logits, self._generator)]
        if self._config.call_bias and self.tokens == 0:
            logits = logits.clone()
            logits[self._loaded_model.tokenize(CALL_BEGIN)[0]] += self._config.call_bias
        tokens = constraint.forced_tokens()
        if tokens:
            constraint.accept(tokens)
            return tokens
        token = choose(constraint.restrict(logits), self._generator)
        if token in self._loaded_model.end_tokens:
            return [token]
        after = constraint.copy_after(token)
        if self._can_close_in_time:
            left = self._config.max_tokens - self.tokens - 1
            end = after.shortest_end()
            if end is None or len(end) > left:
                self._is_closed, self.finish_reason = True, "length"
                return constraint.shortest_end() or []
        self._constraint = after
        return [token]

    def _rewind(self) -> None:
        """Remove tokens from the conversation if their text was not yielded and the cache can be cropped."""
        conversation = self._conversation
        tokens, length = self._text.tokens_within(self._text.shown_length)
        excess = self.tokens - tokens
        unread = min(excess, len(conversation.pending))
        if excess > unread and not conversation.crop(self.prompt_tokens + tokens):
            length = len(self._text.text)
        elif unread:
            del conversation.pending[-unread:]
        conversation.text = self._prompt + self._escape_control_tokens(self._text.text[:length])

    def _escape_control_tokens(self, text: str) -> str:
        """Return the text of an answer as the next prompt will contain it.

        Text that spells a control token is escaped, unless the model generated the control token itself.
        Without the escape, an answer that spells the end-of-turn token could be mistaken for an empty answer.
        """
        control = self._loaded_model.control_tokens
        if len(control.find_spans(text)) <= control.count(self._text.tokens):
            return text
        return control.escape(text)


class AnswerText:
    """Text of an answer that grows token by token.

    `push` returns only text that is certain to be part of the answer. It holds back an incomplete character,
    and text that may be the beginning of a stop sequence. `text` contains all text so far, including a stop
    sequence; its first `shown_length` characters were returned. `tokens` are the tokens so far.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise ValueError("stop='': a stop sequence must not be empty")
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self.tokens: list[int] = []
        # Decoding starts at `_anchor`, some tokens earlier: some tokenizers drop the space of the first word.
        self._anchor = self._read = 0
        self._ends = [0]
        self.text = ""
        self.shown_length = 0
        self.stop_at: int | None = None

    @property
    def is_stopped(self) -> bool:
        """True if the text contains a stop sequence, which begins at `stop_at`."""
        return self.stop_at is not None

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain to be part of the answer."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._anchor : self._read])
        now = self._decode(self.tokens[self._anchor :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.text += now[len(before) :]
            self._anchor, self._read = self._read, len(self.tokens)
        self._ends.append(len(self.text))
        start = max(0, self.shown_length - max(map(len, self._stops), default=1) + 1)
        positions = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if not positions:
            return self._show(len(self.text) - self._count_held_back())
        self.stop_at = min(positions)
        return self._show(self.stop_at)

    def finish(self) -> str:
        """End the answer; return the text that was held back and is part of the answer."""
        if not self.is_stopped and self._read < len(self.tokens):
            before = self._decode(self.tokens[self._anchor : self._read])
            self.text += self._decode(self.tokens[self._anchor :])[len(before) :]
            self._ends[-1] = len(self.text)
        return self._show(self.stop_at if self.stop_at is not None else len(self.text))

    def tokens_within(self, length: int) -> tuple[int, int]:
        """Return a pair: how many tokens end in the first `length` characters, and where the last one ends.

        The second number is a position in `text`.
        """
        end = max(end for end in self._ends if end <= length)
        # The first token with this end: tokens after it belong to an incomplete character.
        return self._ends.index(end), end

    def _show(self, end: int) -> str:
        new, self.shown_length = self.text[self.shown_length : end], max(self.shown_length, end)
        return new

    def _count_held_back(self) -> int:
        """Return the length of the longest suffix of `text` that is the beginning of a stop sequence."""
        sizes = (
            size for stop in self._stops for size in range(1, len(stop)) if self.text.endswith(stop[:size])
        )
        return max(sizes, default=0)

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
