"""Disk space and duration of an installation: Scrubjay without extras, then what each user extra adds.

    python -P -m scrubjay.experiments.bench.installation

Installs from the repository into a new virtual environment, with pip's current cache. Uninstalls the packages
of an extra before it installs the next one. Sizes are megabytes on disk. Options: `--help`.
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
_DEVELOPER_EXTRAS = ("bench", "dev")


@dataclass(frozen=True)
class InstallationBench:
    """Options of the benchmark."""

    extras: tuple[str, ...] = ()
    """Extras to install; by default all user extras."""


def main(bench: InstallationBench) -> None:
    """Run the benchmark and print its table.

    Raises CalledProcessError if pip fails, e.g. without a network.
    """
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = bench.extras or tuple(
        name for name in project["optional-dependencies"] if name not in _DEVELOPER_EXTRAS
    )
    print(
        f"Python {platform.python_version()}, pip {version('pip')} with a warm cache, torch "
        f"{version('torch')}; rows of extras count only what the extra adds\n"
    )
    print("| package or extra | MB | seconds | largest packages, MB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        environment = _Environment(Path(folder))
        _install(environment, "", "scrubjay")
        for extra in extras:
            if new_packages := _install(environment, f"[{extra}]", extra):
                environment.pip("uninstall", "--yes", *new_packages)


def _install(environment: _Environment, extra: str, name: str) -> set[str]:
    """Install an extra, print its row and return the newly installed packages."""
    print(f"installing {name}", file=sys.stderr)
    packages, sizes = environment.packages(), environment.sizes()
    start = time.perf_counter()
    environment.pip("install", "--editable", f"{_ROOT}{extra}")
    seconds = time.perf_counter() - start
    growth = {part: size - sizes.get(part, 0) for part, size in environment.sizes().items()}
    largest = sorted(growth.items(), key=lambda item: -item[1])[:3]
    largest_text = ", ".join(f"{part} {size / 1e6:.0f}" for part, size in largest if size >= 1e6)
    print(f"| {name} | {sum(growth.values()) / 1e6:.0f} | {seconds:.0f} | {largest_text} |", flush=True)
    return environment.packages() - packages


@dataclass(frozen=True)
class _Environment:
    """A virtual environment."""

    folder: Path

    def pip(self, *arguments: str) -> str:
        command = [self.folder / "bin" / "python", "-m", "pip", *arguments, "--disable-pip-version-check"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def packages(self) -> set[str]:
        return {package["name"] for package in json.loads(self.pip("list", "--format=json"))}

    def sizes(self) -> dict[str, int]:
        """Return the bytes on disk of each entry of site-packages."""
        (site,) = self.folder.glob("lib/python*/site-packages")
        return {part.name: _size(part) for part in site.iterdir()}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


if __name__ == "__main__":
    main(tyro.cli(InstallationBench))
