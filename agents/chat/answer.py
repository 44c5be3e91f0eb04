"""One answer of a language model, token by token; it leaves the conversation's cache ready for the next."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.agents.chat.constraint import CALL_BEGIN, Constraint
from scrubjay.agents.chat.conversations import Conversation
from scrubjay.agents.chat.loaded import LoadedModel
from scrubjay.agents.chat.sampling import Sampling
from scrubjay.agents.chat.text import AnswerText


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is drawn and where it ends."""

    max_tokens: int = 512
    """Tokens at most."""
    sampling: Sampling = field(default_factory=Sampling)
    """How each is drawn."""
    seed: int | None = None
    """Makes the draws repeatable."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these texts."""
    call_bias: float = 0.0
    """Added to the logit with which a tool call would begin, at the answer's first token."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens}: an answer has at least one token")


class Answer:
    """Iterate over it once: pieces of text as they come, some empty, one or more tokens each.

    The conversation has read `prompt` but for `new_tokens`. Raises ValueError if `max_tokens` is too small
    for the shortest answer that the constraint admits, and if the text outgrows what the model was trained on
    under a policy that leaves tokens at their positions.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        conversation: Conversation,
        prompt: str,
        new_tokens: Sequence[int],
        config: AnswerConfig,
        constraint: Constraint | None = None,
    ) -> None:
        """Begin an answer; nothing is read yet.

        Args:
            loaded: Who answers.
            conversation: What it has read already; it holds the answer, too, when that ends.
            prompt: The whole text that is answered.
            new_tokens: Tokens at the end of `prompt` that the conversation has not read.
            config: How the answer is drawn and where it ends.
            constraint: The form it must have; None for free text.
        """
        self._loaded, self._conversation, self._prompt = loaded, conversation, prompt
        self._new_tokens, self._config, self._constraint = new_tokens, config, constraint
        self.cached_tokens = conversation.cache.get_seq_length()
        self.prompt_tokens = self.cached_tokens + len(new_tokens)
        self.tokens = 0
        self.finish_reason = "stop"
        if self._outgrown(self.prompt_tokens + 1):
            raise ValueError(
                f"the prompt has {self.prompt_tokens} tokens, and {loaded.name} was trained on texts of "
                f"{loaded.trained_length}; choose a policy that goes on, such as policy='sinks'"
            )
        self._closed = False
        self._text = AnswerText(loaded.tokenizer, config.stop)
        self._shown = 0
        self._generator = torch.Generator()
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)
        shortest = [] if constraint is None else constraint.shortest_end()
        # Some patterns of strings have no end that is found; then the limit may cut the answer.
        self._closes_in_time = shortest is not None
        if shortest and len(shortest) > config.max_tokens:
            raise ValueError(
                f"max_tokens={config.max_tokens}: the shortest valid answer has {len(shortest)} tokens"
            )

    def __iter__(self) -> Generator[str]:
        conversation = self._conversation
        logits = self._loaded.read(self._new_tokens, conversation.cache)
        conversation.text = conversation.asked = self._prompt
        conversation.asked_length, conversation.asked_last = self.prompt_tokens, self._new_tokens[-1]
        conversation.pending = []
        try:
            while not self._ended():
                if conversation.pending:
                    unread, conversation.pending = conversation.pending, []
                    logits = self._loaded.read(unread, conversation.cache)
                for token in self._next(logits):
                    if token in self._loaded.end_tokens:
                        self._closed = True
                        break
                    conversation.pending.append(token)
                    self.tokens += 1
                    piece = self._text.push(token)
                    self._shown += len(piece)
                    yield piece
                    if self._text.stopped:
                        break
            rest = self._text.finish()
            self._shown += len(rest)
            if rest:
                yield rest
        finally:
            # Also when nobody wants the rest: the next turn knows no more than was shown.
            self._rewind()

    def _ended(self) -> bool:
        if self._closed or self._text.stopped or (self._constraint is not None and self._constraint.finished):
            return True
        if self.tokens >= self._config.max_tokens or self._outgrown(self.prompt_tokens + self.tokens):
            self.finish_reason = "length"
            return True
        return False

    def _outgrown(self, length: int) -> bool:
        """Return whether a text of this length has positions that the model was not trained on."""
        longest = self._loaded.trained_length
        return (
            longest is not None and length > longest and not self._conversation.cache.policy.moves_positions
        )

    def _next(self, logits: Float[Tensor, "vocabulary"]) -> list[int]:
        """Return the next token, or several where there is no choice."""
        constraint, choose = self._constraint, self._config.sampling.choose
        if constraint is None:
            return [choose(logits, self._generator)]
        if self._config.call_bias and self.tokens == 0:
            logits = logits.clone()
            logits[self._loaded.tokenize(CALL_BEGIN)[0]] += self._config.call_bias
        forced = constraint.forced()
        if forced:
            constraint.accept(forced)
            return forced
        token = choose(constraint.restrict(logits), self._generator)
        if token in self._loaded.end_tokens:
            return [token]
        after = constraint.after(token)
        if self._closes_in_time:
            left = self._config.max_tokens - self.tokens - 1
            end = after.shortest_end()
            if end is None or len(end) > left:
                self._closed, self.finish_reason = True, "length"
                return constraint.shortest_end() or []
        self._constraint = after
        return [token]

    def _rewind(self) -> None:
        """Make the conversation hold the prompt and what was shown, as far as its cache can go back."""
        conversation = self._conversation
        tokens, length = self._text.tokens_within(self._shown)
        beyond = self.tokens - tokens
        unread = min(beyond, len(conversation.pending))
        if unread:
            del conversation.pending[-unread:]
        if beyond > unread and not crop(conversation, self.prompt_tokens + tokens):
            length = len(self._text.said)
        conversation.text = self._prompt + self._as_a_template_has_it(self._text.said[:length])

    def _as_a_template_has_it(self, said: str) -> str:
        """Return the words of an answer as they will stand in the next prompt.

        Where they spell control tokens that were not said as such, these are broken: or an empty answer and
        the mark behind it would pass for them.
        """
        control = self._loaded.control_tokens
        if len(control.places(said)) <= control.count(self._text.tokens):
            return said
        return control.plain(said)


def crop(conversation: Conversation, length: int) -> bool:
    """Let the conversation's cache forget what it saw after `length` tokens; return False if it cannot."""
    try:
        conversation.cache.crop(length - conversation.cache.get_seq_length())
    except (ValueError, NotImplementedError):
        return False
    return True
