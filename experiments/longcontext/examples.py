"""A question about a long text: its parts, fitting it to a length, and scoring an answer."""

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
    """Strings that a correct answer contains, all of them."""
    new_tokens: int
    """Maximum tokens of the answer."""

    @property
    def prompt(self) -> str:
        """Full user message."""
        return f"{self.instruction}\n\n{self.context}\n\n{self.question}"

    def render(self, tokenizer: Any) -> str:
        """Return prompt and answer prefix in the model's chat template, or as plain text if it has none.

        Control tokens in the text are escaped.
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
    """Return a function that counts the tokens of an example, prompt and answer."""

    def count(example: Example) -> int:
        return len(tokenizer(example.render(tokenizer), verbose=False)["input_ids"]) + example.new_tokens

    return count


def fit(build: Callable[[int], Example], length: int, count: Callable[[Example], int]) -> Example:
    """Return the example of the largest size, from 1 up, whose `count` is at most `length`.

    The search may stop below the largest size once less than 1/200 of the length is unused. The returned
    example has been counted. Raises ValueError if not even size 1 fits.
    """
    size, example = 1, build(1)
    used = count(example)
    if used > length:
        raise ValueError(f"length={length}: the shortest example of this task has {used} tokens")
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

    RULER's metric (Hsieh et al. 2024, arXiv 2404.06654). A longer answer never scores less.
    """
    if not references:
        raise ValueError("references is empty; give at least one string")
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)
