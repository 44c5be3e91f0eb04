"""The prompt around a text and a question, in two halves between which the text goes."""

from __future__ import annotations

from typing import Any

from scrubjay.memory.context.quotes import ControlTokens, Quotes

_MARK = "\u2063text\u2063"


def chat_prompt(tokenizer: Any, question: str) -> tuple[str, str]:
    """Return what comes before and after the text: the chat template where the tokenizer has one.

    A control token in the question is broken.
    """
    template = getattr(tokenizer, "chat_template", None) or ""
    quotes = Quotes(ControlTokens(tokenizer), template)
    user = f"{_MARK}\n\nAnswer with the text above: {quotes.quote(question)}"
    if template:
        messages = [{"role": "user", "content": user}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        prompt = f"{user}\nAnswer:"
    before, _, after = prompt.partition(_MARK)
    return quotes.text(before), quotes.text(after)
