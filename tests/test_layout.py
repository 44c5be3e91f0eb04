"""The layout: folders that one can look over, modules of one idea, tests that mirror them."""

import ast
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("agents", "envs", "experiments", "kernels", "memory", "tests")
MOST_MODULES = 20
MOST_LINES = 500
LONG = 100
"""Lines from which on a module has tests in a file of its name."""
MOST_ARGUMENTS = 5
"""Arguments that a docstring may tell of in prose."""
UNTESTED_BY_NAME = Path(__file__).with_name("untested_by_name.txt")


def modules() -> list[Path]:
    """Return the paths of all modules, from the root."""
    listed = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in listed]


def folders() -> dict[Path, list[Path]]:
    """Return the modules of each folder."""
    found: dict[Path, list[Path]] = {}
    for module in modules():
        found.setdefault(module.parent, []).append(module)
    return found


def length(module: Path) -> int:
    return len((ROOT / module).read_text(encoding="utf-8").splitlines())


def test_no_folder_is_a_heap():
    heaps = {str(folder): len(found) for folder, found in folders().items() if len(found) > MOST_MODULES}
    assert not heaps, f"over {MOST_MODULES} modules, a room each: {heaps}"


def test_no_module_is_a_heap():
    heaps = {str(module): lines for module in modules() if (lines := length(module)) > MOST_LINES}
    assert not heaps, f"over {MOST_LINES} lines, an idea a file: {heaps}"


@pytest.mark.parametrize("end", [0, -1], ids=["first", "last"])
def test_no_three_siblings_are_a_family_by_name(end):
    """What three names share is the name of a folder."""
    families = {}
    for folder, found in folders().items():
        names = [module.stem.removeprefix("test_") for module in found]
        children = [child.name for child in (ROOT / folder).iterdir() if (child / "__init__.py").exists()]
        words = Counter(name.split("_")[end] for name in {*names, *children} if not name.startswith("__"))
        families |= {f"{folder}: {word}": count for word, count in words.items() if count >= 3}
    assert not families


def untested() -> set[str]:
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
    """Of the longer modules those without a test file of their name are listed, and the list only shrinks."""
    listed = set(UNTESTED_BY_NAME.read_text().split())
    assert len(listed) <= 60
    assert untested() == listed, "a module has gained or lost its tests: take it off the list, or write some"


def test_every_test_file_lies_where_its_room_does():
    for module in modules():
        if module.parts[0] == "tests" and len(module.parts) > 2:
            room = Path(*module.parts[1:-1])
            assert (ROOT / room).is_dir() or room.parts[-1] in ("interpreted", "compatibility", "suites"), (
                module
            )


def public_functions() -> Iterator[tuple[Path, str, ast.FunctionDef, str]]:
    """Yield public functions and methods: the module, the class or "", itself, what is told of it."""
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


def test_long_lists_of_arguments_are_explained():
    """What overrides a method is explained where that is, a Triton kernel by what launches it."""
    explained = {node.name for _, owner, node, told in public_functions() if owner and "Args:" in told}
    for module, owner, node, told in public_functions():
        given = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
        count = len([name for name in given if name not in ("self", "cls")])
        # An overload is explained where the function is.
        spared = any(
            ast.unparse(decorator) in ("triton.jit", "overload") for decorator in node.decorator_list
        )
        if count > MOST_ARGUMENTS and not spared and not (owner and node.name in explained):
            assert "Args:" in told, f"{module}:{node.lineno}: {node.name} has {count} arguments and no Args:"


def test_every_folder_says_what_it_is():
    for folder in folders():
        if folder.parts[0] != "tests":
            assert (ROOT / folder / "__init__.py").read_text().startswith('"""'), folder


def test_what_is_told_of_files_is_true():
    """A path in a docstring, a comment or a document leads somewhere; CHANGELOG may tell of what was."""
    listed = [path for path in modules() if path.parts[0] != "tests"]
    for folder in ("experiments", "docs/extending", "docs/guide", "docs/tutorials"):
        listed += [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.md")]
    lost = set()
    for file in [*listed, Path("README.md"), Path("CONTRIBUTING.md"), Path("Makefile")]:
        said = re.findall(
            rf"(?<![\w/])(?:{'|'.join(ROOMS)})/[\w/]+\.(?:py|json|toml|md|png)\b",
            (ROOT / file).read_text("utf-8"),
        )
        lost |= {f"{file}: {path}" for path in said if not (ROOT / path).exists()}
    assert not lost


def git(*words: str) -> list[str]:
    """Return the files that git lists; none where this is no clone."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [name for name in done.stdout.split("\0") if name]


def test_git_ignores_no_source():
    """A folder may have a name that .gitignore means for something else."""
    ignored = git("--others", "--ignored", "--exclude-standard", "--", *ROOMS)
    assert not [name for name in ignored if name.endswith((".py", ".json", ".toml"))]


def test_no_file_is_over_a_megabyte():
    for name in git():
        path = ROOT / name
        assert not path.is_file() or path.stat().st_size <= 2**20, name
