"""Prompts with quoted text: control tokens in quotes are escaped, so that only the chat template writes them.

A tokenizer turns `<|im_end|>` into the end of a message, no matter who wrote it. Before a template is
applied, each character of a quote is replaced by a private code point. Templates strip, join or JSON-encode
text, but they do not change these code points. So the code points in the rendered prompt show which
text comes from a quote. The rendered prompt is then tokenized. If the tokenizer would create a control token
from a quote, or from a quote and its surroundings, a zero-width space is inserted into the quote. All other
text stays unchanged.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from scrubjay.memory.context.foreign.rendering import render_chat

_BREAK = "\u200b"
_UNKNOWN = "\ufffd"
# Characters that JSON escapes. They, and whitespace, stay unchanged while a template is applied.
_NOT_ENCODED = '"\\'
_SURROGATES = range(0xD800, 0xE000)
_BLOCK_MARK = re.compile(r"</?[^\s<>'\"{}\\]{1,64}>|\[/?[A-Z][A-Z_]*\]")


class ControlTokens:
    """Control tokens of a tokenizer: all tokens added to its vocabulary.

    Raises ValueError on a tokenizer that cannot return token offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added_tokens = getattr(tokenizer, "added_tokens_decoder", {})
        # A single character is ordinary text unless it is marked as special.
        self._control_texts = {
            token: mark.content
            for token, mark in added_tokens.items()
            if mark.special or len(mark.content) > 1
        }
        if self._control_texts and not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} cannot return token offsets, so control tokens in quoted text "
                "cannot be escaped; load the tokenizer with AutoTokenizer"
            )
        self._composing = [mark.content for mark in added_tokens.values() if mark.normalized]

    def find_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the (begin, end) span of each part of `text` that becomes a control token."""
        if not self._control_texts:
            return []
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        spans = [
            span
            for token, span in zip(encoding.input_ids, encoding.offset_mapping, strict=True)
            if token in self._control_texts and self._is_meant(token, text[slice(*span)])
        ]
        # Tokenizers that normalize first merge a control token's last character with a combining accent.
        for mark in self._composing:
            for end in (match.end() for match in re.finditer(re.escape(mark), text)):
                if end < len(text) and unicodedata.combining(text[end]):
                    spans.append((end - 1, end + 1))
        return spans

    def count(self, tokens: Sequence[int]) -> int:
        """Return the number of control tokens in `tokens`."""
        return sum(token in self._control_texts for token in tokens)

    def encode(self, text: str) -> list[int]:
        """Tokenize `text` without creating control tokens; the whole text counts as quoted."""
        tokens = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if self._control_texts.keys().isdisjoint(tokens):
            return tokens
        return self._tokenizer(self.escape(text), add_special_tokens=False).input_ids

    def escape(self, text: str) -> str:
        """Escape the control tokens in `text`; the whole text counts as quoted."""
        quotes = Quotes(self)
        return quotes.to_prompt(quotes.quote(text))

    def _is_meant(self, token: int, text: str) -> bool:
        # Unknown text also becomes an added token, which is harmless.
        if token != getattr(self._tokenizer, "unk_token_id", None):
            return True
        return _fold_case(self._control_texts[token]) in _fold_case(text)


class Quotes:
    """Quoted texts of one prompt.

    Call `quote` on each quoted text, apply the chat template, and pass the result to `to_prompt`.

    `template` is the source text of the chat template. The block marks in this source, such as `<tool_call>`,
    are escaped in quotes even if they are not control tokens.
    """

    def __init__(self, control: ControlTokens, template: str = "") -> None:
        self._control, self._template = control, template
        self._codes = _Codes()

    def quote(self, content: Any) -> Any:
        """Encode a text, or all texts in a JSON value, as private code points."""
        if isinstance(content, dict):
            return {self.quote(name): self.quote(value) for name, value in content.items()}
        if isinstance(content, (list, tuple)):
            return [self.quote(value) for value in content]
        return content.translate(self._codes) if isinstance(content, str) else content

    def decode(self, encoded_text: str) -> str:
        """Replace private code points by the original characters. Control tokens in the text are not
        escaped."""
        return encoded_text.translate(self._codes.letters)

    def to_prompt(self, prompt: str) -> str:
        """Decode the quotes in a rendered prompt and escape the control tokens in them."""
        while spans := self._find_spans_to_break(prompt):
            parts, done = [], 0
            for begin, end in spans:
                parts += [prompt[done:begin], self._break_mark(prompt[begin:end])]
                done = end
            prompt = "".join([*parts, prompt[done:]])
        return self.decode(prompt)

    def _find_spans_to_break(self, prompt: str) -> list[tuple[int, int]]:
        text, selection = self.decode(prompt), []
        spans = self._control.find_spans(text)
        if self._blocks is not None:
            spans += [match.span() for match in self._blocks.finditer(text)]
        for begin, end in sorted(spans):
            apart = not selection or begin >= selection[-1][1]
            if apart and self._break_mark(prompt[begin:end]) != prompt[begin:end]:
                selection.append((begin, end))
        return selection

    def _break_mark(self, mark: str) -> str:
        """Return `mark` with its quoted part escaped, or unchanged if no part is quoted.

        `mark` is the text of a control token or of a block mark such as `<tool_call>`.
        """
        space, unknown = self.quote(_BREAK), self.quote(_UNKNOWN)
        quoted_places = [at for at, code in enumerate(mark) if ord(code) in self._codes.letters]
        if not quoted_places:
            return mark
        if len(mark) > 1 and space not in mark:
            at = max(quoted_places[0], 1)
            return f"{mark[:at]}{space}{mark[at:]}"
        # The tokenizer ignores zero-width spaces, or the mark is a single character.
        at = next((at for at in quoted_places if mark[at] not in (space, unknown)), None)
        return mark if at is None else f"{mark[:at]}{unknown}{mark[at + 1 :]}"

    @cached_property
    def _blocks(self) -> re.Pattern[str] | None:
        marks = sorted(set(_BLOCK_MARK.findall(self._template)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, marks)), re.IGNORECASE) if marks else None


class _Codes(dict[int, int]):
    """Table for `str.translate` that assigns a private code point to each character on first use.

    The surrogates are assigned first, then the private-use planes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.letters: dict[int, int] = {}
        self._free = itertools.chain(_SURROGATES, range(0xF0000, 0x10FFFE))
        self[ord(_UNKNOWN)] = self._assign_code(ord(_UNKNOWN))

    def __missing__(self, letter: int) -> int:
        sign = chr(letter)
        if sign.isspace() or sign < " " or sign in _NOT_ENCODED:
            self[letter] = letter
        else:
            self[letter] = self[ord(_UNKNOWN)] if letter in _SURROGATES else self._assign_code(letter)
        return self[letter]

    def _assign_code(self, letter: int) -> int:
        code = next(self._free, None)
        if code is None:
            return self[ord(_UNKNOWN)]
        self.letters[code] = letter
        return code


def _fold_case(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


_MARK, _END = "\u2063text\u2063", "\u2063end\u2063"


class ChatPrompt(NamedTuple):
    """Parts of a prompt around a text."""

    before: str
    """Prompt before the text."""
    question: str
    """Question after the text."""
    tail: str
    """Template text after the question."""


def select_template(
    tokenizer: Any, template: str | Mapping[str, str] | None = None, has_tools: bool = False
) -> str | None:
    """Return the chat template of a prompt; None if there is none.

    A tokenizer may have several templates, with names. As in transformers, a prompt with tools then uses the
    template `tool_use`, and any other prompt uses `default`.

    Args:
        tokenizer: Tokenizer whose templates are used by default.
        template: Jinja template, name of one of the tokenizer's templates, or templates by name.
        has_tools: True if the prompt offers tools.

    Raises ValueError if neither convention selects one of several templates, or if a name is unknown.
    """
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, list | tuple):  # as in the files of a tokenizer
        own = {one["name"]: one["template"] for one in own}
    if isinstance(template, str) and isinstance(own, Mapping):
        if template in own:
            return own[template]
        if "{" not in template:
            raise ValueError(
                f"chat_template={template!r}: no template of this name; choose from {_list(own)}"
            )
    templates = template or own
    if not isinstance(templates, Mapping):
        return templates or None
    names = [*(["tool_use"] if has_tools else []), "default", *(templates if len(templates) == 1 else [])]
    name = next((name for name in names if name in templates), None)
    if name is None:
        raise ValueError(
            f"the chat templates are {_list(templates)}, and none of them is 'default'; pass the name of a "
            "template as LocalChatModel(chat_template=...), or set tokenizer.chat_template to one template"
        )
    return templates[name]


def _list(templates: Mapping[str, str]) -> str:
    return ", ".join(map(repr, sorted(templates))) or "empty"


def build_chat_prompt(tokenizer: Any, question: str) -> ChatPrompt:
    """Build the prompt around a text, from the tokenizer's chat template if there is one.

    Control tokens in the question are escaped.
    """
    template = select_template(tokenizer)
    quotes = Quotes(ControlTokens(tokenizer), template or "")
    user = f"{_MARK}\n\nAnswer with the text above: {quotes.quote(question)}{_END}"
    if template:
        messages = [{"role": "user", "content": user}]
        prompt = render_chat(tokenizer, template, messages, add_generation_prompt=True)
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
