"""Layout: small folders, modules of one idea and tests that mirror the folders."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "envs", "experiments", "kernels", "memory", "tests")
MOST_MODULES = 20
MOST_LINES = 500
LONG = 100
"""Modules with more lines have a test file of their name."""
MOST_ARGUMENTS = 5
"""Functions with more arguments have an `Args` section."""
UNTESTED_BY_NAME = Path(__file__).with_name("untested_by_name.txt")


def modules() -> list[Path]:
    """Return the paths of all modules, from the root."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in paths]


def folders() -> dict[Path, list[Path]]:
    """Return the modules of each folder."""
    by_folder: dict[Path, list[Path]] = {}
    for module in modules():
        by_folder.setdefault(module.parent, []).append(module)
    return by_folder


def length(module: Path) -> int:
    return len((ROOT / module).read_text(encoding="utf-8").splitlines())


def test_folders_are_small():
    counts = {str(folder): len(files) for folder, files in folders().items() if len(files) > MOST_MODULES}
    assert not counts, f"folders with over {MOST_MODULES} modules: {counts}"


def test_modules_are_short():
    lengths = {str(module): lines for module in modules() if (lines := length(module)) > MOST_LINES}
    assert not lengths, f"modules with over {MOST_LINES} lines: {lengths}"


@pytest.mark.parametrize("end", [0, -1], ids=["first", "last"])
def test_no_three_siblings_share_a_word(end):
    """Three modules with a common first or last word belong into a folder of that name."""
    families = {}
    for folder, files in folders().items():
        names = [module.stem.removeprefix("test_") for module in files]
        children = [child.name for child in (ROOT / folder).iterdir() if (child / "__init__.py").exists()]
        words = Counter(name.split("_")[end] for name in {*names, *children} if not name.startswith("__"))
        families |= {f"{folder}: {word}": count for word, count in words.items() if count >= 3}
    assert not families


def modules_without_tests() -> set[str]:
    """Return the longer modules without a test file of their name."""
    missing = set()
    for module in modules():
        if module.parts[0] == "tests" or length(module) <= LONG:
            continue
        name = module.parent.name if module.stem == "__init__" else module.stem
        if not (ROOT / "tests" / module.parent / f"test_{name}.py").exists():
            missing.add(str(module))
    return missing


def test_tests_mirror_the_folders():
    """The list of longer modules without a test file of their name only shrinks."""
    exceptions = set(UNTESTED_BY_NAME.read_text().split())
    assert len(exceptions) <= 60
    assert modules_without_tests() == exceptions, "update untested_by_name.txt or write tests"


def test_every_test_folder_has_its_package():
    for module in modules():
        if module.parts[0] == "tests" and len(module.parts) > 2:
            package = Path(*module.parts[1:-1])
            assert (ROOT / package).is_dir() or package.parts[-1] in ("fuzz", "interpreted", "suites"), module


def public_functions() -> Iterator[tuple[Path, str, ast.FunctionDef, str]]:
    """Yield module, class name or "", node and docstring of public functions and methods."""
    for module in modules():
        if module.parts[0] == "tests":
            continue
        tree = ast.parse((ROOT / module).read_text("utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for owner in [tree, *(node for node in classes if not node.name.startswith("_"))]:
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and (node.name == "__init__" or node.name[0] != "_"):
                    about = owner if node.name == "__init__" else node
                    yield module, getattr(owner, "name", ""), node, ast.get_docstring(about) or ""


def test_long_lists_of_arguments_are_documented():
    """Overrides are documented at the base method and Triton kernels at their launch."""
    functions = list(public_functions())
    with_args = {node.name for _, owner, node, text in functions if owner and "Args:" in text}
    for module, owner, node, text in functions:
        arguments = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        count = len([name for name in arguments if name not in ("self", "cls")])
        if count <= MOST_ARGUMENTS:
            continue
        # An overload is documented at its function.
        is_exempt = any(
            ast.unparse(decorator) in ("triton.jit", "overload") for decorator in node.decorator_list
        )
        if not is_exempt and not (owner and node.name in with_args):
            names_another = "rguments and errors are those of `" in text
            error = f"{module}:{node.lineno}: {node.name} has {count} arguments and no Args:"
            assert "Args:" in text or names_another, error


def test_every_folder_says_what_it_is():
    for folder in folders():
        if folder.parts[0] != "tests":
            assert (ROOT / folder / "__init__.py").read_text().startswith('"""'), folder


def test_paths_in_texts_exist():
    """Paths in docstrings, comments and pages exist. CHANGELOG may name deleted files."""
    files = [path for path in modules() if path.parts[0] != "tests"]
    for folder in ("experiments", "docs/extending", "docs/guide", "docs/tutorials"):
        files += [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.md")]
    missing = set()
    for file in [*files, Path("README.md"), Path("CONTRIBUTING.md"), Path("Makefile")]:
        paths = re.findall(
            rf"(?<![\w/])(?:{'|'.join(PACKAGES)})/[\w/]+\.(?:py|json|toml|md|png)\b",
            (ROOT / file).read_text("utf-8"),
        )
        missing |= {f"{file}: {path}" for path in paths if not (ROOT / path).exists()}
    assert not missing


def git(*words: str) -> list[str]:
    """Return the files that git lists. The list is empty outside a clone."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [name for name in done.stdout.split("\0") if name]


def test_git_ignores_no_source():
    """A pattern of .gitignore may match a source folder by mistake."""
    files = git("--others", "--ignored", "--exclude-standard", "--", *PACKAGES)
    assert not [name for name in files if name.endswith((".py", ".json", ".toml"))]


def test_no_file_is_over_a_megabyte():
    for name in git():
        path = ROOT / name
        assert not path.is_file() or path.stat().st_size <= 2**20, name
