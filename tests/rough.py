"""Runs the default suite in rough surroundings, once with the extras and once without them.

The machine is busy, the order is random, and locale, terminal and time zone are unusual. Arguments
are passed on to pytest: `python tests/rough.py tests/envs`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCALES = ("tr_TR", "de_DE")
"""Turkish has an i without a dot, German a decimal comma."""
SURROUNDINGS = {
    "COLUMNS": "40",
    "FORCE_COLOR": "1",
    "LINES": "12",
    "PYTHONHASHSEED": "random",
    "TERM": "xterm-256color",
    "TZ": "Asia/Kathmandu",
}
HIDE = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
find = PathFinder.find_spec


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)


PathFinder.find_spec = classmethod(find_spec)  # pytest copies the attribute to a class of its own
"""
MODULES = {"mlflow_skinny": "mlflow"}
"""Modules that have another name than their package."""
SHARED = {"ray", "triton"}
"""Packages of extras that are installed without the extra, too."""


def list_extras() -> list[str]:
    """Return the modules of all extras for users."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {
        name.split(">=")[0].split("[")[0].replace("-", "_")
        for extra, packages in extras.items()
        if extra not in ("dev", "bench")
        for name in packages
    }
    return sorted(MODULES.get(name) or name for name in names - SHARED)


def make_locale(folder: Path) -> dict[str, str]:
    """Return variables that select a locale: a new one in `folder`, or C where none can be made."""
    localedef = shutil.which("localedef")
    for name in LOCALES if localedef else ():
        words = [str(localedef), "-i", name, "-f", "UTF-8", str(folder / f"{name}.UTF-8")]
        subprocess.run(words, check=False, capture_output=True)
        if (folder / f"{name}.UTF-8").exists():
            return {"LOCPATH": str(folder), "LC_ALL": f"{name}.UTF-8", "LANG": f"{name}.UTF-8"}
    return {"LC_ALL": "C"}


def run(words: list[str], hidden: list[str]) -> int:
    """Run pytest without the modules `hidden`. Return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(HIDE.format(hidden=hidden) if hidden else "")
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
        environment |= SURROUNDINGS | make_locale(Path(folder)) | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "pytest", *(words or ["-n", "auto"])]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    """Run the suite twice while other processes keep all processors busy."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))
    ]
    try:
        codes = [run(sys.argv[1:], hidden) for hidden in ([], list_extras())]
    finally:
        for burner in burners:
            burner.kill()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
