"""Texts of many alphabets and any length, and the growth of running time with their length."""

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
"""Unit of each text, which is repeated."""


def repeat(unit, length):
    """Return `unit` repeated to `length` characters, between two letters."""
    return f"x{(unit * (length // len(unit) + 1))[:length]}x"


def growth(work, unit, length):
    """Return the ratio of processor times of `work` for a text four times as long."""
    return seconds(work, repeat(unit, 4 * length)) / seconds(work, repeat(unit, length))


def seconds(work, text, tries=3):
    """Return the shortest processor time of `work` for `text`."""
    return min(_once(work, text) for _ in range(tries))


def _once(work, text):
    gc.disable()  # its time depends on other tests
    try:
        start = time.process_time()
        work(text)
        return max(time.process_time() - start, 1e-3)
    finally:
        gc.enable()
