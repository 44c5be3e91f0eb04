"""Questions about long texts, the largest text that fits a number of tokens, and the score of an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scrubjay.memory.context.quotes import ControlTokens, Quotes

SLACK = 200
"""The search for a size stops when less than 1/200 of the length is unused."""


@dataclass(frozen=True)
class Example:
    """A text to remember, a question about it, and what an answer must contain."""

    instruction: str
    """Instruction before the text."""
    context: str
    """Text that contains the answer."""
    question: str
    """Question after the text."""
    answer_prefix: str
    """Beginning of the answer, appended to the prompt."""
    references: tuple[str, ...]
    """Strings, all of which a correct answer contains."""
    new_tokens: int
    """Maximum number of tokens of the answer."""

    @property
    def prompt(self) -> str:
        """Full user message."""
        return f"{self.instruction}\n\n{self.context}\n\n{self.question}"

    def render(self, tokenizer: Any) -> str:
        """Return the prompt in the tokenizer's chat template, followed by the answer prefix.

        Without a chat template, both are plain text. Control tokens in both are escaped.
        """
        template = getattr(tokenizer, "chat_template", None)
        quotes = Quotes(ControlTokens(tokenizer), template or "")
        prompt, prefix = quotes.quote(self.prompt), quotes.quote(self.answer_prefix)
        if template is None:
            return quotes.to_prompt(f"{prompt}\n{prefix}")
        turn = [{"role": "user", "content": prompt}]
        return quotes.to_prompt(
            tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + prefix
        )


def token_counter(tokenizer: Any) -> Callable[[Example], int]:
    """Return a function that counts an example's tokens: the rendered prompt plus `new_tokens`."""

    def count(example: Example) -> int:
        return len(tokenizer(example.render(tokenizer), verbose=False)["input_ids"]) + example.new_tokens

    return count


def fit(build: Callable[[int], Example], length: int, count: Callable[[Example], int]) -> Example:
    """Return the largest example that fits: `build(size)` with the largest size whose `count` is <= `length`.

    Sizes start at 1. The search may stop at a smaller size once less than 1/200 of the length is unused.
    Raises ValueError if the example of size 1 does not fit.
    """
    size, example = 1, build(1)
    used = count(example)
    if used > length:
        raise ValueError(f"length={length}: must be at least {used} tokens, the shortest example")
    too_large = None
    while length - used > length // SLACK and (too_large is None or too_large - size > 1):
        # The fixed overhead of an example makes this guess too small; each following guess is better.
        guess = size + max(1, (length - used) * size // used)
        if too_large is not None and guess >= too_large:
            guess = (size + too_large) // 2
        candidate = build(guess)
        candidate_tokens = count(candidate)
        if candidate_tokens <= length:
            size, example, used = guess, candidate, candidate_tokens
        else:
            too_large = guess
    return example


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Return the fraction of `references` that `answer` contains, ignoring case.

    This is RULER's metric (Hsieh et al. 2024, arXiv 2404.06654). Additional text never lowers the
    score.
    """
    if not references:
        raise ValueError("references is empty; pass at least one string")
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)
