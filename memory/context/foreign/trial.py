"""Try a model's tokenizer and templates once in a process with limits, before this process reads them.

The verdict of a model that passes is recorded in the user's state folder, by the contents of its files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from scrubjay._version import __version__
from scrubjay.memory.context.foreign.weights import ModelLimitError

_log = logging.getLogger(__name__)

CPU_SECONDS = 20
"""CPU time of a trial. Tokenizers of current models take 2 to 5 s."""
GGUF_SECONDS = 10
"""Further CPU time for a GGUF file, for the import of torch."""
WALL_SECONDS = 90
"""Time of a trial, for Windows, which has no limit of CPU time."""
DATA_BYTES = 768 * 2**20
"""Memory of a trial, besides that for its files."""
BYTES_PER_BYTE = 24
"""Further memory per byte of its files: parsed JSON is about 20 times as large."""
MAX_CONFIG = 2 * 2**20
"""Bytes of config.json and other short files. Those of current models have up to 100 KB."""
MAX_FILE = 256 * 2**20
"""Bytes of any other file but weights. The largest vocabularies have 35 MB."""
_WEIGHTS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".onnx", ".msgpack", ".ckpt", ".npz"}
_LARGE = {"tokenizer.json", "vocab.json", "tokenizer_config.json", "added_tokens.json"}
_TEMPLATES = "additional_chat_templates"
_BESIDE_GGUF = _LARGE | {
    "chat_template.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.model",
}
"""Files beside a GGUF file that transformers may read. Its folder may also hold files of anybody else."""
_GGUF_HEAD = 16 * 2**20  # bytes of a GGUF file that the record of its verdict depends on
_GGUF_DATA = 2**30  # bytes of memory for torch, which transformers needs to read the file's header
_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")


def try_model(folder: Path, gguf_file: str | None = None) -> str | None:
    """Try the tokenizer and templates of a folder, or of a GGUF file in it, once per contents.

    Returns None if the model passes. Returns type and text of the error if its tokenizer cannot be read; it
    then must not be read in this process. Raises ModelLimitError if a limit is exceeded.
    """
    files = list_files(folder, gguf_file)
    if gguf_file is None and not any(_is_part_of_tokenizer(file) for file in files):
        return None
    record = _record_file(folder, files)
    if record.is_file():
        return None
    verdict = _run(folder, gguf_file, files)
    if verdict["limit"]:
        raise refuse(folder / gguf_file if gguf_file else folder, verdict["limit"])
    if verdict["error"] is None:
        with suppress(OSError):  # without a record, the next load tries the model again
            _write(record)
    return verdict["error"]


def refuse(source: Path, reason: str) -> ModelLimitError:
    """Return the error for a model that exceeds a limit."""
    return ModelLimitError(
        f"the model at {str(source)!r} is refused: {reason}. Use another model; if you trust its author, "
        "pass trust=True, which skips this check"
    )


def list_files(folder: Path, gguf_file: str | None = None) -> list[Path]:
    """Return the files of a model but its weights, in order; for a GGUF file, that file and those beside it.

    Raises ModelLimitError if one is too large, or is no regular file.
    """
    paths = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")]
    files = sorted(path for path in paths if path.suffix not in _WEIGHTS and not path.is_dir())
    if gguf_file:
        files = [file for file in files if file.name in _BESIDE_GGUF or file.parent.name == _TEMPLATES]
    for file in files:
        try:
            info = file.stat()
        except OSError:  # a broken link
            continue
        if not stat.S_ISREG(info.st_mode):
            raise refuse(folder, f"{file.name} is not a regular file")
        is_short = (
            file.suffix == ".json" and file.name not in _LARGE and not file.name.endswith(".index.json")
        )
        most = MAX_CONFIG if is_short else MAX_CONFIG * 8 if file.name.endswith(".index.json") else MAX_FILE
        if info.st_size > most:
            raise refuse(folder, f"{file.name} has {info.st_size:,} bytes, limit {most:,}")
    return [*([folder / gguf_file] if gguf_file else []), *(file for file in files if file.is_file())]


def _is_part_of_tokenizer(file: Path) -> bool:
    return file.name not in ("config.json", "generation_config.json") and not file.name.endswith(
        ".index.json"
    )


def _run(folder: Path, gguf_file: str | None, files: list[Path]) -> dict[str, Any]:
    """Run the trial and return its verdict."""
    file_bytes = sum(file.stat().st_size for file in files)
    size = file_bytes - ((folder / gguf_file).stat().st_size if gguf_file else 0)
    request = {
        "folder": str(folder.resolve()),
        "gguf_file": gguf_file,
        "cpu_seconds": CPU_SECONDS + (GGUF_SECONDS if gguf_file else 0),
        "data_bytes": DATA_BYTES + BYTES_PER_BYTE * size + (_GGUF_DATA if gguf_file else 0),
        "mapped_bytes": 2**30 + file_bytes + (4 * 2**30 if gguf_file else 0),
    }
    torch = "" if gguf_file else "sys.modules['torch'] = None; "
    code = f"import sys; {torch}sys.path[:] = {sys.path!r}; from {__package__}.child import main; main()"
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "critical",
    }
    if not sys.executable:
        raise refuse(folder, "it cannot be tried, since this program has no Python interpreter of its own")
    try:
        result = subprocess.run(
            [sys.executable, "-P", "-c", code],
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"limit": f"its tokenizer and templates take more than {WALL_SECONDS} s", "error": None}
    with suppress(ValueError, IndexError, TypeError):
        verdict = json.loads(result.stdout.splitlines()[-1])
        if verdict.keys() == {"limit", "error"}:
            return verdict
    lines = result.stderr.decode("utf-8", "replace").split("\n")
    reason = next((line.strip()[:200] for line in reversed(lines) if "memory" in line.lower()), "")
    limits = f"{request['cpu_seconds']} s of CPU time, {request['data_bytes'] >> 20:,} MiB of memory"
    detail = f": {reason}" if reason else f", exit status {result.returncode}"
    return {
        "limit": f"its tokenizer or a chat template exceeds the limits of a trial ({limits}){detail}",
        "error": None,
    }


def _record_file(folder: Path, files: list[Path]) -> Path:
    """Return the file that records the verdict of these contents, read by these versions."""
    from platformdirs import user_state_path

    versions = [metadata.version(name) for name in ("transformers", "tokenizers", "jinja2")]
    digest = hashlib.sha256("\0".join([__version__, platform.python_version(), *versions]).encode())
    for file in files:
        info = file.stat()
        if file.suffix == ".gguf":
            digest.update(repr((os.path.realpath(file), info.st_size, info.st_mtime_ns)).encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_GGUF_HEAD))
            continue
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"\0{file.relative_to(folder)}\0{content}".encode(errors="surrogateescape"))
    return user_state_path("scrubjay", appauthor=False) / "models" / digest.hexdigest()


def _write(record: Path) -> None:
    """Write an empty file that only this user can read; another process may write the same file."""
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=record.parent)
    os.close(handle)
    Path(temporary).replace(record)
