"""One question about a long text: its parts, how much text fits a length, and how an answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scrubjay.memory.context.quotes import ControlTokens, Quotes

SLACK = 200
"""An example is full enough when less than 1/200 of its length is unused."""


@dataclass(frozen=True)
class Example:
    """A text to remember, a question about it, and what an answer must contain."""

    instruction: str
    """What the reader is told before the text."""
    context: str
    """The text, in which the answer lies."""
    question: str
    """What is asked after it."""
    answer_prefix: str
    """How the answer begins; put into the reader's mouth."""
    references: tuple[str, ...]
    """Strings that a right answer contains, all of them."""
    new_tokens: int
    """Tokens the answer may have."""

    @property
    def prompt(self) -> str:
        """All that the user says."""
        return f"{self.instruction}\n\n{self.context}\n\n{self.question}"

    def render(self, tokenizer: Any) -> str:
        """Return prompt and answer prefix by the model's chat template, or plainly if it has none.

        A control token in the text is broken.
        """
        template = getattr(tokenizer, "chat_template", None)
        quotes = Quotes(ControlTokens(tokenizer), template or "")
        prompt, prefix = quotes.quote(self.prompt), quotes.quote(self.answer_prefix)
        if template is None:
            return quotes.text(f"{prompt}\n{prefix}")
        turn = [{"role": "user", "content": prompt}]
        return quotes.text(
            tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + prefix
        )


def token_counter(tokenizer: Any) -> Callable[[Example], int]:
    """Return a function that counts the tokens of an example: those to read and those to write."""

    def count(example: Example) -> int:
        return len(tokenizer(example.render(tokenizer), verbose=False)["input_ids"]) + example.new_tokens

    return count


def fit(build: Callable[[int], Example], length: int, count: Callable[[Example], int]) -> Example:
    """Return the example of the largest size, from 1 up, whose `count` is at most `length`.

    The search stops at the largest, or below it once less than 1/200 of the length is unused; what it returns
    has been counted. Raises ValueError if not even size 1 fits.
    """
    size, example = 1, build(1)
    used = count(example)
    if used > length:
        raise ValueError(f"length={length}: the shortest example of this task has {used} tokens")
    too_large = None
    while length - used > length // SLACK and (too_large is None or too_large - size > 1):
        # What an example needs beside its text makes this guess too small, and every next one better.
        guess = size + max(1, (length - used) * size // used)
        if too_large is not None and guess >= too_large:
            guess = (size + too_large) // 2
        candidate = build(guess)
        needed = count(candidate)
        if needed <= length:
            size, example, used = guess, candidate, needed
        else:
            too_large = guess
    return example


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Return the fraction of `references` that `answer` contains, whatever their case.

    RULER's metric (Hsieh et al. 2024, arXiv 2404.06654). More answer never scores less.
    """
    if not references:
        raise ValueError("references is empty: there is nothing to match")
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)
