"""Check that names and docstrings use the field's words, and that pages have short and plain sentences.

    python tests/plain_words.py [--all] [FILE or FOLDER ...]

A docstring says what a thing is or does. It does not open with a question word. A name is a noun for a thing
or a verb for an action. It is not a bare participle, such as `told` or `Kept`, unless the glossary allows it.
Sentences of pages have at most 35 words, and pages few commas and semicolons. A page of the guide about doing
something has 400 to 1,200 words and at least two examples with their output. Headings, tables and code are no
sentences. `make lint` checks the whole project.
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


LONGEST_SENTENCE = 35
MOST_PAUSES = 6
"""Number of commas and semicolons in 100 words that a page stays below, if it has at least 100 words."""
GUIDE_WORDS = range(400, 1201)
FEWEST_EXAMPLES = 2
REFERENCE_PAGES = frozenset(("changes", "cite", "command", "environments", "index", "limits", "memories"))
"""Pages of the guide to look things up, of any length and without examples."""
UNFINISHED: frozenset[str] = frozenset()
"""Pages and the rules that they break. Lines may only be removed."""
_EXAMPLE = re.compile(r"^```(?:python|sh)\n(?:(?!^```).)*?^```\n\n*```text\n", re.MULTILINE | re.DOTALL)


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


def pages() -> list[Path]:
    """Return the pages whose sentences are checked."""
    sources = sorted((ROOT / "docs").rglob("*.md"))
    outputs = ("generated", "site", "jupyter_execute")
    return [ROOT / "README.md", *(page for page in sources if not set(outputs) & set(page.parts))]


def prose(markdown: str) -> str:
    """Return the sentences of a page: its text without code blocks, tables, headings and targets of links."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^(```|:::).*?^\1$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    lines = ("" if line.lstrip().startswith(("|", "#", "!", "<")) else line for line in text.splitlines())
    return re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)).replace("`", "")


def sentences(markdown: str) -> list[str]:
    """Return the sentences and list items of a page. A colon ends a sentence, too."""
    parts = re.split(r"(?<=[.:!?])\s+|\n\s*\n|\n\s*(?:[-*]|\d+\.) ", prose(markdown))
    return [" ".join(part.split()) for part in parts if len(_words(part)) >= 3]


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][\w'-]*", text)


def check_page(place: str, markdown: str) -> dict[str, str]:
    """Return the rules that a page breaks, and how."""
    problems = {}
    parts = sentences(markdown)
    long = [part for part in parts if len(_words(part)) > LONGEST_SENTENCE]
    if long:
        problems["sentences"] = f"longer than {LONGEST_SENTENCE} words: {' / '.join(long)}"
    count = sum(len(_words(part)) for part in parts)
    pauses = 100 * sum(len(re.findall("[,;]", part)) for part in parts) / max(count, 1)
    if count >= 100 and pauses >= MOST_PAUSES:
        problems["commas"] = f"{pauses:.1f} commas and semicolons in 100 words (limit {MOST_PAUSES})"
    folder, _, name = place.removesuffix(".md").rpartition("/")
    if folder == "docs/guide" and name not in REFERENCE_PAGES:
        count = len(prose(markdown).split())
        if count not in GUIDE_WORDS:
            problems["words"] = f"{count} words, not {GUIDE_WORDS[0]} to {GUIDE_WORDS[-1]:,}"
        count = len(_EXAMPLE.findall(markdown))
        if count < FEWEST_EXAMPLES:
            problems["examples"] = f"{count} examples with output (at least {FEWEST_EXAMPLES})"
    return problems


def check_pages() -> tuple[list[str], list[str]]:
    """Return what pages break, and the exceptions that are no longer needed."""
    problems = {}
    for page in pages():
        place = page.relative_to(ROOT).as_posix()
        for rule, problem in check_page(place, page.read_text(encoding="utf-8")).items():
            problems[f"{place}: {rule}"] = f"{place}: {problem}"
    bad = [problem for rule, problem in problems.items() if rule not in UNFINISHED]
    return bad, sorted(UNFINISHED - problems.keys())


def main() -> int:
    """Print all violations of the rules; return 1 if there are any."""
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
    bad_pages, done = check_pages() if options.paths == list(FOLDERS) else ([], [])
    for problem in bad_pages:
        print(problem)
    for rule in done:
        print(f"{rule}: mended; remove it from UNFINISHED")
    print(f"docstrings that open with a question word: {share:.1%} of {count} (limit {MOST_OPENINGS:.0%})")
    return int(bool(bad_names or bad_pages or done) or share >= MOST_OPENINGS)


if __name__ == "__main__":
    sys.exit(main())
