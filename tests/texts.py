"""Texts of many alphabets and shapes, of any length, and whether work on them grows faster than they do."""

import gc
import time

UNITS = {
    "newlines": "\n",
    "small letters": "a",
    "capitals": "A",
    "digits": "7",
    "dots": ".",
    "spaces": " ",
    "quotes": "\"'",
    "brackets": "<({[",
    "marks": "<<<",
    "dashes": "-",
    "equals and hashes": "#=",
    "Chinese": "中",
    "Chinese sentences": "中。",
    "marks on a letter": "\u0301\u0316",
    "marks that come apart": "\uff9e\u0316",
    "sentences": "Ada. And b? ",
    "words of letters and digits": "a1 ",
    "blank lines": " \n \n",
    "headings": "# a\n",
    "underlined": "a\n---   ",
    "dates that are none": "2020-13-45 ",
    "months that are verbs": "may 3 ",
    "thoughts": "<think></think>",
    "open thoughts": "<think>",
    "schemes": "a+.-",
    "addresses": "a://b ",
    "sigmas": "Σ'",
    "emoji": "👩\u200d👩",
}
"""A piece of each alphabet and shape."""


def text_of(unit, length):
    """Return `unit` again and again, `length` characters between letters that end what it may begin."""
    return f"x{(unit * (length // len(unit) + 1))[:length]}x"


def growth(work, unit, length):
    """Return by what the processor's time for `work` grows when a text is four times as long."""
    return seconds(work, text_of(unit, 4 * length)) / seconds(work, text_of(unit, length))


def seconds(work, text, tries=3):
    """Return the least time of the processor that `work` takes for `text`."""
    return min(_once(work, text) for _ in range(tries))


def _once(work, text):
    gc.disable()  # which takes longer the more others have left behind
    try:
        begun = time.process_time()
        work(text)
        return max(time.process_time() - begun, 1e-3)
    finally:
        gc.enable()
