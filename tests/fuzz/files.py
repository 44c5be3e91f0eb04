"""Mutators of folders: links, pipes, sparse and missing files, strange names, and files that code plants."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import socket
import zipfile
from pathlib import Path

from .values import ESCAPE

VICTIM = Path("victim", "precious.txt")
"""File beside the sample that no command may change. The working directory is the folder of both."""
EVIL = 'open("canary", "w").close()\nclass Foo: pass\nC = M = T = main = parallel_env = Foo\n'
_PLANTS = (
    *(
        "evil.py",
        "evilmod.py",
        "sitecustomize.py",
        "conftest.py",
        "json.py",
        "modeling_llama.py",
        "numpy/__init__.py",
    ),
    *(
        "custom_generate/generate.py",
        "__init__.py",
        "torch.py",
        "tokenization_llama.py",
        "yaml.py",
        "pyproject.toml",
    ),
)
_CONFIGS = (
    *("adapter_config.json", "added_tokens.json", "special_tokens_map.json", "kernels.lock", "vocab.json"),
    *("model.safetensors.index.json", "processor_config.json", "chat_template.json"),
)
_OUTPUTS = (
    *(
        ".lock",
        "curve.png",
        "metrics.jsonl",
        "result.json",
        "config.json",
        "environment.json",
        "x.html",
        "report.md",
    ),
    *(
        "checkpoints/.lock",
        "metrics.jsonl.new",
        "config.json.new",
        "result.json.new",
        "initial.safetensors",
        "scores.jsonl",
    ),
    *(
        "README.md",
        "model.safetensors",
        "conversation.json",
        "conversation.json.new",
        "memory.db-wal",
        "runs.csv",
    ),
)


def link(file: Path, draw: random.Random) -> None:
    """Replace the file by a link to a file elsewhere, to itself or to a device."""
    _remove(file)
    target = draw.choice(
        ("{victim}", "{victim}", "{victim}/x", "/dev/zero", "/dev/full", "/proc/self/mem",
         "/proc/self/environ", "{name}", "/var", "..", "/dev/stdin", "/nowhere", "/proc/self/fd/1")
    )  # fmt: skip
    file.symlink_to(target.format(victim=VICTIM.absolute(), name=file.name))


def link_hard(file: Path, draw: random.Random) -> None:
    """Give a file of somebody else a second name in the sample, often that of an output."""
    folder = file if file.is_dir() else file.parent
    path = draw.choice((file, folder / draw.choice(_OUTPUTS), folder / draw.choice(_OUTPUTS)))
    if path.is_dir() and not path.is_symlink():
        path = path / draw.choice(_OUTPUTS)
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.7:
        os.link(VICTIM, path)
    else:
        path.symlink_to(VICTIM.absolute())


def use_special_file(file: Path, draw: random.Random) -> None:
    """Replace the file by a pipe, a socket, a folder, or an empty or huge sparse file."""
    _remove(file)
    way = draw.randrange(5)
    if way == 0:
        os.mkfifo(file)
    elif way == 1:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(os.path.relpath(file))
    elif way == 2:
        (file / "deeper").mkdir(parents=True)
    else:
        with file.open("wb") as stream:
            stream.truncate(draw.choice((0, 2**31, 2**35, 2**42)))


def grow(file: Path, draw: random.Random) -> None:
    """Add a hole of gigabytes to the end of the file."""
    size = draw.choice((2**30, 2**33, 2**38))
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + size)


def delete(file: Path, draw: random.Random) -> None:
    """Delete the file."""
    _remove(file)


def rename(file: Path, draw: random.Random) -> None:
    """Rename the file, or exchange it with another one."""
    others = [path for path in sorted(file.parent.iterdir()) if path != file and path.is_file()]
    if others and draw.random() < 0.5:
        other = draw.choice(others)
        content = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return
    name = draw.choice(
        (ESCAPE, "-rf", "--help", " ", "a\nb", "%s", "x" * 250, "step_99999999999999", "\udcff", "CON")
    )
    file.rename(file.with_name(name))


def plant(file: Path, draw: random.Random) -> None:
    """Add Python modules, pickles or configs that a library might load."""
    folder = file if file.is_dir() else file.parent
    way = draw.randrange(4)
    if way < 2:
        for name in draw.sample(_PLANTS, 3):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(EVIL)
    elif way == 2:
        name = draw.choice(("pytorch_model.bin", "model.pt", "training.pt", "adapter_model.bin", "state.pkl"))
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(_Evil()))
            archive.writestr("archive/version", "3\n")
    else:
        name = draw.choice(_CONFIGS)
        value = draw.choice(
            (
                {
                    "base_model_name_or_path": "..",
                    "peft_type": "LORA",
                    "auto_mapping": {"parent_library": "evilmod"},
                },
                {"weight_map": {"model.norm.weight": "../victim/precious.txt"}, "metadata": {}},
                {"weight_map": {"model.norm.weight": "/dev/zero"}, "metadata": {"total_size": 10**18}},
                {f"<{number}>": number for number in range(20_000)},
                [1] * 1000,
            )
        )
        (folder / name).write_text(json.dumps(value))


def crowd(file: Path, draw: random.Random) -> None:
    """Add many files or deep folders."""
    folder = file if file.is_dir() else file.parent
    if draw.random() < 0.5:
        for number in range(3000):
            (folder / f"step_{number:09}").touch()
    else:
        with contextlib.suppress(OSError):
            folder.joinpath(*["checkpoints"] * 120).mkdir(parents=True)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch canary",)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rename(path.with_name("moved away"))
    else:
        path.unlink(missing_ok=True)


WAYS = (link, link, link_hard, link_hard, use_special_file, grow, delete, rename, plant, crowd)
