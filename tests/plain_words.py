"""Check that names and docstrings use the field's words.

    python tests/plain_words.py [--all] [FILE or FOLDER ...]

A docstring says what a thing is or does. It does not open with a question word. A name is a noun for a thing
or a verb for an action. It is not a bare participle, such as `told` or `Kept`, unless the glossary allows it.
`make lint` checks the whole project.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("agents", "docs", "envs", "experiments", "kernels", "memory", "src/scrubjay", "tests")
OPENING = re.compile(
    r"((Return|Yield) )?(What|Whatever|Who|Whose|Whom|How|Where|Whether|Which|Of|The same)\b", re.IGNORECASE
)
MOST_OPENINGS = 0.01
"""Largest share of docstrings that may open with such a word."""

IRREGULAR = """
    been begun bought born borne bred broken brought built burnt caught chosen dealt drawn driven
    drunk dug eaten fallen felt flown forgotten found fought gathered given gone gotten grown heard
    held hung kept known lacking laid led lent lost made meant met owed paid proven ridden risen
    rung said seen sent shaken shown shrunk shut slept sold sought spent spoken spun stolen stood
    struck stuck sung sunk swept sworn taken taught thought thrown told torn understood undone
    withdrawn woken won worn written
"""
NO_PARTICIPLES = "bed embed feed hundred indeed need red seed shed speed weed exceed proceed"
"""Other words that end in "ed"."""


def allowed_terms() -> frozenset[str]:
    """Return the participles that the last table of the glossary allows."""
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    table = glossary.rpartition("## Participles that are names")[2]
    return frozenset(re.findall(r"\w+", " ".join(re.findall(r"^\| ([\w, ]+) \|", table, re.MULTILINE))))


ALLOWED = allowed_terms() | frozenset(NO_PARTICIPLES.split())
PARTICIPLES = frozenset(IRREGULAR.split())


def is_participle(name: str) -> bool:
    """Return True if a name is a single participle."""
    word = name.strip("_")
    if word.isupper() or not word[:1].isalpha() or re.search(r"[_\d]|[a-z][A-Z]", word):
        return False
    word = word.lower()
    return word not in ALLOWED and (word in PARTICIPLES or (word.endswith("ed") and len(word) > 4))


def names(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the kind and the name of everything that the module names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "variable", node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, "argument", node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, "attribute", node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, "function", node.name
        elif isinstance(node, ast.ClassDef):
            yield node.lineno, "class", node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, "variable", node.asname
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.lineno, "variable", node.name


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring, those of fields and constants included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for index, statement in enumerate(body):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue
            text = statement.value.value
            follows = index > 0 and isinstance(body[index - 1], ast.Assign | ast.AnnAssign)
            if isinstance(text, str) and (index == 0 or follows):
                yield statement.lineno, text.strip()


def modules(paths: list[str]) -> Iterator[Path]:
    """Yield our modules under the paths."""
    for path in paths:
        root = ROOT / path
        yield from [root] if root.suffix == ".py" else sorted(root.rglob("*.py"))


def check(paths: list[str]) -> tuple[list[str], list[str], int]:
    """Return bad names, bad docstrings and the number of docstrings."""
    bad_names, bad_docstrings, count = [], [], 0
    for path in modules(paths):
        if path.is_symlink() or "generated" in path.parts or "site" in path.parts:
            continue
        place = path.relative_to(ROOT)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if is_participle(path.stem.removeprefix("test_")):
            bad_names.append(f"{place}:1: module {path.stem}")
        for line, kind, name in names(tree):
            if is_participle(name) or (kind == "function" and name.strip("_").startswith("of_")):
                bad_names.append(f"{place}:{line}: {kind} {name}")
        for line, text in docstrings(tree):
            count += 1
            if OPENING.match(text):
                bad_docstrings.append(f"{place}:{line}: {text.splitlines()[0][:100]}")
    return list(dict.fromkeys(bad_names)), bad_docstrings, count


def main() -> int:
    """Print what breaks the rules; return 1 where something does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("paths", nargs="*", default=list(FOLDERS))
    parser.add_argument(
        "--all", action="store_true", help="list bad docstrings even if their share is allowed"
    )
    options = parser.parse_args()
    bad_names, bad_docstrings, count = check(options.paths)
    share = len(bad_docstrings) / max(count, 1)
    if share >= MOST_OPENINGS or options.all:
        print("\n".join(bad_docstrings))
    print("\n".join(bad_names), end="\n" * bool(bad_names))
    print(f"names that are participles: {len(bad_names)}")
    print(f"docstrings that open with a question word: {share:.1%} of {count} (limit {MOST_OPENINGS:.0%})")
    return int(bool(bad_names) or share >= MOST_OPENINGS)


if __name__ == "__main__":
    sys.exit(main())
