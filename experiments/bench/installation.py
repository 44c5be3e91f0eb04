"""What an installation takes of a disk, and how long: Scrubjay itself, then each extra for users on top.

    python -m scrubjay.experiments.bench.installation

Installs from the repository into a new virtual environment, by pip with its cache as it is, and takes every
extra away again before the next. Sizes are megabytes on the disk. Options: `--help`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tyro

_ROOT = Path(__file__).resolve().parents[2]
_FOR_OURSELVES = ("bench", "dev")


@dataclass(frozen=True)
class InstallationBench:
    """What is measured."""

    extras: tuple[str, ...] = ()
    """Extras to install; default: all that are for users."""


def main(bench: InstallationBench) -> None:
    """Measure and print the table. Raises CalledProcessError if pip fails, as without a network."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = bench.extras or tuple(
        name for name in project["optional-dependencies"] if name not in _FOR_OURSELVES
    )
    print(
        f"Python {platform.python_version()}, pip {version('pip')} with a warm cache, torch "
        f"{version('torch')}; an extra is on top of Scrubjay\n"
    )
    print("| what | MB | seconds | the largest, MB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        place = _Place(Path(folder))
        _add(place, "", "scrubjay")
        for extra in extras:
            if come := _add(place, f"[{extra}]", extra):
                place.pip("uninstall", "--yes", *come)


def _add(place: _Place, extra: str, name: str) -> set[str]:
    """Install, print a row, and return the packages that came with it."""
    print(f"installing {name}", file=sys.stderr)
    packages, sizes = place.packages(), place.sizes()
    begun = time.perf_counter()
    place.pip("install", "--editable", f"{_ROOT}{extra}")
    seconds = time.perf_counter() - begun
    grown = {part: size - sizes.get(part, 0) for part, size in place.sizes().items()}
    largest = sorted(grown.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{part} {size / 1e6:.0f}" for part, size in largest if size >= 1e6)
    print(f"| {name} | {sum(grown.values()) / 1e6:.0f} | {seconds:.0f} | {told} |", flush=True)
    return place.packages() - packages


@dataclass(frozen=True)
class _Place:
    """A virtual environment."""

    folder: Path

    def pip(self, *words: str) -> str:
        command = [self.folder / "bin" / "python", "-m", "pip", *words, "--disable-pip-version-check"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def packages(self) -> set[str]:
        return {package["name"] for package in json.loads(self.pip("list", "--format=json"))}

    def sizes(self) -> dict[str, int]:
        """Return the bytes on the disk of what lies side by side in site-packages."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        return {part.name: _size(part) for part in site.iterdir()}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


if __name__ == "__main__":
    main(tyro.cli(InstallationBench))
