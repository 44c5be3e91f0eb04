"""Values that break assumptions: numbers at limits, long and misleading texts, deep and wide trees."""

from __future__ import annotations

import random
from typing import Any

ESCAPE = "\x1b]2;owned\x07\x1b[8m\x9b1A\r\u202e\u2066\u2028"
"""Control characters that set the title, hide text, move the cursor and reverse the direction."""
TEXTS = (
    *("", " ", "\0", "\ud800", "\ufeff", "a\nscrubjay: done", ESCAPE, "e\u0301" * 300, "İ" * 2000, "١٢٣"),
    *("../victim/precious.txt", "victim/precious.txt", "/etc/passwd", "/dev/stdin", "~root", "file:///etc"),
    *("evilmod:Foo", "evilmod", "os:system", "builtins.eval", "__class__", "subprocess.Popen", "torch.load"),
    *("http://127.0.0.1:9/x", "//host/share", "s3://bucket/x", "NaN", "-Infinity", "1e999", "0x10", "null"),
    *(
        "$(touch canary)",
        "`touch canary`",
        "{{ 7 * 7 }}",
        "{0.__class__}",
        "%n%s",
        "'; DROP TABLE records; --",
    ),
    *("[bold red]", "$\\hat{" * 40, "<script>x</script>", "&#x1f4a9;" * 50, "a" * 70_000, "\u200b" * 500),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 65_535, 65_536, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, -(2**63), 2**64, 10**100, -(10**40), 0.1, -0.0, 1e-320, 3.5e38, 1.7e308),
    *(float("nan"), float("inf"), float("-inf")),
)
BYTES = (
    *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\n" * 3000, b"[" * 20_000),
    *(b'{"":' * 5000, b"- " * 9000, b"\x80\x04cos\nsystem\n.", b"PK\x05\x06" + bytes(18), b"\x1f\x8b\x08"),
    *(b"9" * 4400, b"-", b"~", b"<" * 9000, b"&amp;" * 4000, b"\x1b[2J\x1b]0;x\x07", b"#!/bin/sh\n"),
)


def nest(depth: int, draw: random.Random) -> Any:
    """Return a tree of this depth."""
    tree: Any = 1
    for _ in range(depth):
        tree = [tree] if draw.random() < 0.5 else {"name": tree}
    return tree


def any_value(draw: random.Random) -> Any:
    """Return a value of JSON."""
    way = draw.randrange(12)
    if way < 4:
        return draw.choice(NUMBERS)
    if way < 7:
        return draw.choice(TEXTS)
    if way == 7:
        return draw.choice((None, True, False, [], {}, [[]], [None], {"": None}))
    if way == 8:
        return nest(draw.choice((3, 60, 700)), draw)
    if way == 9:
        return [draw.choice(NUMBERS)] * draw.choice((2, 40, 30_000))
    if way == 10:
        return {f"{draw.choice(TEXTS)[:40]}{number}": number for number in range(draw.choice((1, 9, 4000)))}
    return {"name": draw.choice(TEXTS), "kind": draw.choice(TEXTS), "id": draw.choice(NUMBERS)}


def change_number(number: float, draw: random.Random) -> Any:
    """Return a number near or far from this one, or the number as another type."""
    return draw.choice(
        (
            *(number + 1, number - 1, -number, number * 1000, number * 10**7, number / 3, str(number)),
            *([number], bool(number), number * 2**20, number + 0.5),
        )
    )
