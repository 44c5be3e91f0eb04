"""Draw a sample of texts for a reader who has not seen the code.

    python tests/sample_texts.py ROUND

prints 30 docstrings, 30 error messages, 30 `--help` texts and 10 pages. The round is the seed. A reader marks
every text that needs a second reading. Each of these is rewritten, and the next round draws a new sample.
"""

from __future__ import annotations

import argparse
import ast
import random
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("agents", "envs", "experiments", "kernels", "memory", "src/scrubjay")
PAGES = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/*/*.md")
Text = tuple[str, str]
"""Place and text."""


@cache
def modules() -> list[tuple[str, ast.Module]]:
    """Return the path and the syntax tree of each module."""
    return [
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8")))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


@cache
def phrases() -> dict[str, str]:
    """Return the English messages of localized errors, by name."""
    folder = ROOT / "agents/language/prompts"
    tables = [tomllib.loads((folder / file).read_text("utf-8")) for file in ("en.toml", "tools_en.toml")]
    return {name: text for table in tables for name, text in table.items() if isinstance(text, str)}


def docstrings() -> Iterator[Text]:
    """Yield the docstrings of modules, classes and functions."""
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    name = getattr(node, "name", "module")
                    yield f"{path}:{getattr(node, 'lineno', 1)} {name}", text


def errors() -> Iterator[Text]:
    """Yield the messages of exceptions, as source."""
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = node.exc.args[0]
                place = f"{path}:{node.lineno} {ast.unparse(node.exc.func)}"
                if isinstance(message, ast.Constant) and message.value in phrases():
                    yield place, phrases()[message.value]
                elif isinstance(message, ast.Constant | ast.JoinedStr) and " " in ast.unparse(message):
                    yield place, ast.unparse(message)


def helps() -> Iterator[Text]:
    """Yield the docstrings of fields, which `--help` shows."""
    for path, tree in modules():
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef):
                for field, text in zip(owner.body, owner.body[1:], strict=False):
                    if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
                        continue
                    if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
                        name = f"{owner.name}.{ast.unparse(field.target)}"
                        yield f"{path}:{text.lineno} {name}", text.value.value


def pages() -> Iterator[Text]:
    """Yield the pages of the documentation."""
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def main() -> None:
    """Print the sample of a round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("round", type=int, help="number of the round; the seed of the sample")
    generator = random.Random(parser.parse_args().round)
    samples = (
        ("Docstrings", docstrings, 30),
        ("Errors", errors, 30),
        ("Help", helps, 30),
        ("Pages", pages, 10),
    )
    for title, texts, count in samples:
        print(f"# {title}\n")
        for place, text in generator.sample(list(texts()), count):
            print(f"## {place}\n\n{text}\n")


if __name__ == "__main__":
    main()
