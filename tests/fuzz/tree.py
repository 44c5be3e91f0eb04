"""Mutators of JSON, JSON lines and YAML: values, names, duplicates, nesting, anchors and tags."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .values import ESCAPE, TEXTS, any_value, change_number, nest

_YAML_TEXTS = (
    "!!python/object/apply:os.system ['touch canary']\n",
    "!!python/name:os.system\n",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghi")
    ),
    "&x {y: *x}\n",
    "<<: [{total_steps: 1}, {total_steps: 2}]\n",
    "? [1, 2]\n: 3\n",
    "? {a: 1}\n: 3\n",
    "--- 1\n--- 2\n",
    "%TAG ! tag:x,2000:\n--- !y z\n",
    "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "a: " + "9" * 5000 + "\n",
    "a: 190:20:30\nb: 0o17\nc: 1_000\nd: .inf\ne: 2001-99-99\n",
    "a: !!binary ////\n",
    "a: !!timestamp 0000-00-00\n",
    "total_steps: 1\ntotal_steps: 2\n",
    "\t- x\n",
    "'" + ESCAPE + "': 1\n",
    '"\\x00\\ud800": "\\x1b[2J"\n',
    "a: |\n" + " x" * 50_000 + "\n",
)
_MAX_VALUES = 50_000


def set_value(file: Path, draw: random.Random) -> None:
    """Replace a value by another one, often by one of the same type."""

    def change(place: Any, key: Any, tree: Any) -> None:
        old = place[key]
        is_number = isinstance(old, int | float) and not isinstance(old, bool)
        place[key] = change_number(old, draw) if is_number and draw.random() < 0.6 else any_value(draw)

    _edit(file, draw, change)


def move_value(file: Path, draw: random.Random) -> None:
    """Replace a value by a value from elsewhere in the file."""

    def change(place: Any, key: Any, tree: Any) -> None:
        other, name = draw.choice(_list_places(tree))
        place[key] = json.loads(json.dumps(other[name]))

    _edit(file, draw, change)


def rename_key(file: Path, draw: random.Random) -> None:
    """Delete, rename, add or repeat an entry."""

    def change(place: Any, key: Any, tree: Any) -> None:
        way = draw.randrange(4)
        if isinstance(place, list):
            if way == 0:
                del place[key]
            else:
                place[key:key] = [place[key]] * draw.choice((1, 3, 5000))
        elif way == 0:
            del place[key]
        elif way == 1:
            place[draw.choice(TEXTS)] = place.pop(key)
        else:
            place[draw.choice((*TEXTS, f"_{key}", key.upper()))] = any_value(draw)

    _edit(file, draw, change)


def wrap(file: Path, draw: random.Random) -> None:
    """Put a value at the bottom of a deep or wide tree."""

    def change(place: Any, key: Any, tree: Any) -> None:
        old = place[key]
        place[key] = draw.choice(
            (
                *([old], {key if isinstance(key, str) else "x": old}, [old] * 200, str(old)),
                *({**old, "inner": old} if isinstance(old, dict) else [[old]], nest(900, draw)),
            )
        )

    _edit(file, draw, change)


def write_text(file: Path, draw: random.Random) -> None:
    """Change the text of the file, so that it may be no valid JSON or have two readings."""
    text = file.read_text("utf-8")
    way = draw.randrange(8)
    if way == 0:  # the same key twice
        text = text.replace("{", '{"format": 99, "kind": "x", "name": "y", ', 1)
    elif way == 1:
        text = text.replace(":", ': NaN, "x":', draw.randint(1, 3))
    elif way == 2:
        text = text.replace(",", ",,", 1)
    elif way == 3:
        text = text.replace('"', "'", draw.randint(1, 40))
    elif way == 4:
        text = text.replace(
            "0", draw.choice(("0" * 4500, "1" * 4500, "1e400", "0x0", "00", "-", "1e-400")), 1
        )
    elif way == 5:
        text = text.replace(
            '"', draw.choice(('"\\u0000', '"\\ud800', '"\\u001b[2J', '"\\')), draw.randint(1, 9)
        )
    elif way == 6:
        text += text
    else:
        text = draw.choice(("[", '{"a":', '[{"x":')) * draw.choice((60, 990, 5000, 90_000)) + text
    file.write_text(text, "utf-8", errors="surrogatepass")


def write_yaml(file: Path, draw: random.Random) -> None:
    """Insert a construct that only YAML has."""
    lines = file.read_text("utf-8").splitlines(keepends=True)
    place = draw.randrange(len(lines) + 1)
    lines[place:place] = [draw.choice(_YAML_TEXTS)]
    file.write_text("".join(lines), "utf-8", errors="surrogatepass")


def _edit(file: Path, draw: random.Random, change: Any) -> None:
    is_yaml, is_lines = file.suffix in (".yaml", ".yml"), file.suffix == ".jsonl"
    text = file.read_text("utf-8")
    lines = text.splitlines() if is_lines else [text]
    number = draw.randrange(len(lines))
    tree = [yaml.safe_load(lines[number]) if is_yaml else json.loads(lines[number])]
    place, key = draw.choice(_list_places(tree))
    change(place, key, tree)
    if not tree:
        tree = [None]
    lines[number] = yaml.safe_dump(tree[0]) if is_yaml else json.dumps(tree[0])
    file.write_text("\n".join(lines) + "\n", "utf-8", errors="surrogatepass")


def _list_places(tree: Any) -> list[tuple[Any, Any]]:
    """Return container and key of the first values of a tree. Aliases of YAML may make billions of them."""
    return list(itertools.islice(_walk(tree), _MAX_VALUES))


def _walk(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield container and key of each value. Only the first 200 entries of a container count."""
    keys = list(value)[:200] if isinstance(value, dict) else range(min(len(value), 200))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _walk(value[key])


WAYS = (set_value, set_value, set_value, move_value, rename_key, rename_key, wrap, write_text)
YAML_WAYS = (set_value, set_value, move_value, rename_key, wrap, write_yaml, write_yaml)
