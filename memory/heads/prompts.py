"""Prompts for a text and a question, and the special tokens at the start of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scrubjay.memory.context.quotes import ControlTokens, Quotes

_MARK, _END = "\u2063text\u2063", "\u2063end\u2063"


class ChatPrompt(NamedTuple):
    """Parts of a prompt around a text."""

    before: str
    """Prompt before the text."""
    question: str
    """Question after the text."""
    tail: str
    """Template text after the question."""


def build_chat_prompt(tokenizer: Any, question: str) -> ChatPrompt:
    """Build the prompt around a text, from the tokenizer's chat template if there is one.

    Control tokens in the question are escaped.
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
    question_text, _, tail = after.partition(_END)
    return ChatPrompt(*map(quotes.to_prompt, (before, question_text, tail)))


def prepend_bos(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """Prepend the tokenizer's start tokens, such as BOS, unless the tokens already start with them.

    Without BOS, Gemma has no attention sink and fails to answer. A chat template already contains BOS.
    """
    bare, whole = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    before = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    opening = whole[:before]
    return [*tokens] if [*tokens[:before]] == opening else [*opening, *tokens]
