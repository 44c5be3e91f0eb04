"""Mutators of web pages, of responses of servers, and of chat templates."""

from __future__ import annotations

import random
import re
from pathlib import Path

from .values import ESCAPE

_TAGS = (
    *(
        "div",
        "p",
        "table",
        "tr",
        "td",
        "ul",
        "li",
        "dl",
        "dd",
        "b",
        "i",
        "span",
        "a",
        "article",
        "section",
        "form",
    ),
    *(
        "select",
        "option",
        "svg",
        "math",
        "mi",
        "template",
        "noscript",
        "font",
        "blockquote",
        "pre",
        "code",
        "h1",
    ),
    *(
        "ruby",
        "rt",
        "details",
        "figure",
        "button",
        "nobr",
        "frameset",
        "textarea",
        "title",
        "main",
        "h3",
        "em",
    ),
)
_PIECES = (
    "<!--" + "-" * 5000,
    "<![CDATA[" + "x" * 300,
    "<!DOCTYPE x [<!ENTITY a 'xxxxxxxx'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>&b;",
    "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>",
    "<?xml version='1.0' encoding='utf-7'?>",
    "<meta charset='utf-16'>",
    "<meta charset='idna'>",
    "<meta http-equiv='content-type' content='text/html; charset=x-user-defined'>",
    "<base href='//[::1'>",
    "<link rel='canonical' href='http://[bad'>",
    "<script type='application/ld+json'>" + '{"@graph":[' * 400 + "</script>",
    '<script type=\'application/ld+json\'>{"@type": [1, {}], "author": {"name": [[]]}}</script>',
    "<time datetime='99999999999-99-99T99:99'>now</time>",
    "<meta property='article:published_time' content='" + "1" * 4000 + "'>",
    "<img src='data:image/png;base64," + "A" * 9000 + "'>",
    "<a href='javascript:x'>" * 300,
    "&#0;&#xD800;&#x110000;&#99999999999;&nbsp" * 50,
    "<p>" + ESCAPE + "</p>",
    "<p style='" + "a:b;" * 4000 + "'>x</p>",
    "<p " + " ".join(f"a{number}=1" for number in range(6000)) + ">x</p>",
    "<table>" + "<tr><td rowspan=65000 colspan=65000>x" * 40,
    "<plaintext>",
    "<iframe srcdoc='<p>x'>",
)
_HEADERS = (
    b"Content-Type: text/html; charset=utf-32-le\r\n",
    b"Content-Type: text/html; charset=punycode\r\n",
    b'Content-Type: text/html; charset="a;b"\r\n',
    b"Content-Type: application/json\r\n",
    b"Content-Type: text/plain; charset=utf-7\r\n",
    b"Content-Type: text/plain; charset=unicode-escape\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: gzip, gzip\r\n",
    b"Content-Encoding: br\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: +5\r\n",
    b"X: " + b"y" * 70_000 + b"\r\n",
    b"X: y\r\n" * 300,
    b" folded\r\n",
    b"X\r\n",
    b"\x00: \x1b[2J\r\n",
    b"Location: http://[::\r\n",
    b"Location: http://\xc3\xa9\x00.example/\r\n",
    b"Location: /again\r\n",
    b"Set-Cookie: " + b"a=b; " * 4000 + b"\r\n",
)
_STATUS = (
    *(
        b"HTTP/1.1 301 Moved",
        b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd",
        b"HTTP/1.1 308",
        b"HTTP/2 200",
    ),
    *(b"HTTP/1.1 302 x\r\nLocation: http://127.0.0.1:1/", b"HTTP/1.1 302 x\r\nLocation: //@:80:80"),
    *(
        b"HTTP/1.0 200",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 103 Hints",
        b"HTTP/1.1 -200 x",
        b"ICY 200 OK",
        b"200",
    ),
    *(b"HTTP/1.1 500 \x1b]0;x\x07", b"HTTP/1.1 429 " + b"z" * 900, b"HTTP/1.1 206 Part", b"HTTP/1.1 0 x"),
)
_TEMPLATES = (
    "{% for a in range(3000) %}{% for b in range(3000) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{% set n = namespace(t='xy') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "{% set n = namespace(t=[1]) %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "{{ messages | tojson(indent=9999999) }}",
    "{{ 'x' | ljust(10 ** 9) }}",
    "{{ 'a'.ljust(3 * 10 ** 9) }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ '%*d' | format(10 ** 9, 1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 10 ** 9 ** 3 }}",
    "{{ 1 << 10 ** 10 }}",
    "{{ ('a' * 40000) | wordwrap(1) | replace('a', 'b' * 4000) }}",
    "{{ range(90000) | list | batch(2) | list | tojson }}",
    "{{ messages | map(attribute='content.__class__.__base__.__subclasses__') | list }}",
    "{{ messages[0].__init__ }}{{ messages.__class__.__mro__ }}{{ raise_exception.__globals__ }}",
    "{{ joiner.__init__.__globals__['os'].system('touch canary') }}",
    "{{ namespace.__init__.__globals__ }}{{ dict.__base__.__subclasses__() }}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% extends 'config.json' %}",
    "{% include ['x', '/etc/passwd'] ignore missing %}",
    "{% from '/etc/passwd' import x with context %}",
    "{% filter upper %}" * 200,
    "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "{{ " + "-" * 9000 + "1 }}",
    "{{ " + "[" * 900 + "]" * 900 + " }}",
    "{{ 'x' | urlize | xmlattr }}",
    "{{ messages | groupby('role') | list | last | first | random }}",
    "{% generation %}x{% endgeneration %}",
    "{{ strftime_now('%9999999Y') }}",
    "{{ " + "'a'~" * 9000 + "'a' }}",
    "{% set x %}{% endset %}{% do x %}{% break %}",
    "{{ cycler('a', 'b').next.__func__.__code__ }}",
    "{{ '\\ud800\\x1b[2J' }}",
    "{{ (messages | string) * 99999 }}",
    "{{ ('a' * 30000) is matching('(a+)+b') }}",
    "{{ messages.append(messages) }}{{ messages | tojson }}",
)


def nest_tags(file: Path, draw: random.Random) -> None:
    """Insert nested, unclosed or wrongly closed tags."""
    depth, tags = draw.choice((3, 200, 3000, 15_000)), draw.sample(_TAGS, draw.randint(1, 3))
    opening = "".join(f"<{tag}>" for tag in tags) * depth
    closing = "".join(f"</{tag}>" for tag in draw.choice((tags, tags[::-1], []))) * depth
    _insert(file, draw, opening + "text of a page " * draw.choice((1, 50)) + closing)


def repeat_tags(file: Path, draw: random.Random) -> None:
    """Insert many equal siblings."""
    tag, text = draw.choice(_TAGS), draw.choice(("", "x", "some words here. ", "&lt;", "<br>", "<td>"))
    _insert(file, draw, f"<{tag}>{text}" * draw.choice((50, 3000, 40_000)))


def insert_piece(file: Path, draw: random.Random) -> None:
    """Insert special markup."""
    _insert(file, draw, draw.choice(_PIECES))


def join_pieces(file: Path, draw: random.Random) -> None:
    """Insert a random sequence of tags, attributes and texts."""
    words = (
        *(f"<{tag}>" for tag in _TAGS),
        *(f"</{tag}>" for tag in _TAGS),
        "<",
        ">",
        "&",
        '"',
        "a ",
        "\n",
        "<a b=",
    )
    _insert(file, draw, "".join(draw.choices(words, k=draw.choice((30, 600, 5000)))))


def change_response(file: Path, draw: random.Random) -> None:
    """Change the status line, a header, or the chunks of a response."""
    status, _, rest = file.read_bytes().partition(b"\r\n")
    head, _, body = rest.partition(b"\r\n\r\n")
    way = draw.randrange(4)
    lines = [line + b"\r\n" for line in head.split(b"\r\n") if line]
    if way == 0:
        status = draw.choice(_STATUS)
    elif way == 1:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(_HEADERS))
    elif way == 2:
        lines = [line for line in lines if not line.lower().startswith(b"content-type")] + [
            draw.choice(_HEADERS)
        ]
    else:
        lines = [line for line in lines if not line.lower().startswith(b"content-length")]
        lines.append(b"Transfer-Encoding: chunked\r\n")
        size = draw.choice((b"5", b"-1", b"0x5", b"ffffffffffffffff", b"5;x=y", b"", b"1" * 70_000, b"g"))
        body = size + b"\r\n" + body + draw.choice((b"", b"\r\n0\r\n\r\n", b"\r\n0\r\n" + b"T: x\r\n" * 200))
    file.write_bytes(status + b"\r\n" + b"".join(lines) + b"\r\n" + body)


def change_template(file: Path, draw: random.Random) -> None:
    """Put a template before, behind or in place of the chat template."""
    old, new = file.read_text("utf-8"), draw.choice(_TEMPLATES)
    file.write_text(draw.choice((new + old, old + new, new)), "utf-8")


def shuffle_template(file: Path, draw: random.Random) -> None:
    """Repeat, delete or exchange parts of the chat template."""
    parts = re.split(r"({[{%].*?[%}]})", file.read_text("utf-8"), flags=re.DOTALL)
    one, two = draw.randrange(len(parts)), draw.randrange(len(parts))
    way = draw.randrange(3)
    if way == 0:
        parts[one], parts[two] = parts[two], parts[one]
    elif way == 1:
        del parts[one]
    else:
        parts[one:one] = [parts[two]] * draw.choice((1, 30, 4000))
    file.write_text("".join(parts), "utf-8")


def _insert(file: Path, draw: random.Random, text: str) -> None:
    content = file.read_text("utf-8", "replace")
    place = draw.choice([match.start() for match in re.finditer("<", content)][2:])
    file.write_text(content[:place] + text + content[place:], "utf-8", errors="replace")


PAGE_WAYS = (nest_tags, nest_tags, repeat_tags, repeat_tags, insert_piece, insert_piece, join_pieces)
RESPONSE_WAYS = (change_response, change_response, insert_piece)
TEMPLATE_WAYS = (change_template, change_template, shuffle_template)
