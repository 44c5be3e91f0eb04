"""The prompt around a text and a question, and what a tokenizer puts before every text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scrubjay.memory.context.quotes import ControlTokens, Quotes

_MARK, _END = "\u2063text\u2063", "\u2063end\u2063"


class ChatPrompt(NamedTuple):
    """What stands around a text that is asked about."""

    before: str
    """What comes before the text."""
    asked: str
    """The question, behind it."""
    tail: str
    """What the template writes behind the question."""


def chat_prompt(tokenizer: Any, question: str) -> ChatPrompt:
    """Return what comes before and after a text: the chat template where the tokenizer has one.

    A control token in the question is broken.
    """
    template = getattr(tokenizer, "chat_template", None) or ""
    quotes = Quotes(ControlTokens(tokenizer), template)
    user = f"{_MARK}\n\nAnswer with the text above: {quotes.quote(question)}{_END}"
    if template:
        messages = [{"role": "user", "content": user}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        prompt = f"{user}\nAnswer:"
    before, _, after = prompt.partition(_MARK)
    asked, _, tail = after.partition(_END)
    return ChatPrompt(*map(quotes.text, (before, asked, tail)))


def opened(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """Return a text's tokens with what the tokenizer puts before every text, as BOS, if it is not there.

    Without it Gemma has no attention sink and answers nothing. A chat template has written it already.
    """
    bare, whole = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    opening = whole[:before]
    return [*tokens] if [*tokens[:before]] == opening else [*opening, *tokens]
