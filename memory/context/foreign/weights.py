"""Sizes of a model: those that its config asks for must fit those of its weight files.

A config of a few bytes can ask for any number of layers, experts or embeddings. transformers would build
them, and initialize weights that the files lack.
"""

from __future__ import annotations

import math
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.modules import module as registration

MAX_COUNT = 100_000
"""Layers, experts, heads or labels in a config. Current models have fewer than 1,000 of each."""
MIN_MODULES = 20_000
"""Modules that any model may have."""
MODULES_PER_TENSOR = 10
"""Further modules per tensor in the weight files. Modules without weights, such as dropout, count too."""
MIN_NUMBERS = 2**24
"""Weights that any model may have."""
NUMBERS_PER_NUMBER = 4
"""Weights of the model per number in the weight files. The files store tied weights once."""
NUMBERS_PER_BYTE = 8
"""Weights of the model per byte of quantized weights, which have at least 1.5 bits each."""
MIN_BUFFER_BYTES = 2**28
"""Bytes of buffers that any model may have, such as the attention masks of GPT-J."""
_SMALL = 2**26  # bytes below which a file may have holes
_MIN_DENSITY = 1 / 8  # of a file's size, on the disk; file systems that compress store weights at about 3/4
_COUNTS = re.compile(r"(^|_)(num|n)_|layer|block|expert|head|label|group|stage|depth|codebook")
_SIZES = re.compile(
    r"(_size|_dim|_ids?|_len|_length|_window|_theta|_positions|_embeddings|_ctx|_embd|_tokens|_seed)$|vocab"
)


class ModelLimitError(ValueError):
    """A model's files ask for too much time or memory; the message names the limit and the way out."""


class WeightSizes(NamedTuple):
    """Contents of weight files."""

    tensors: int
    numbers: int
    nbytes: int


def check_density(file: Path) -> None:
    """Raise ModelLimitError if most of a large file is holes, which take no space on the disk."""
    info = file.stat()
    if not stat.S_ISREG(info.st_mode):
        raise ModelLimitError(f"{file} is not a regular file; replace it by a file")
    if is_mostly_holes(info):
        raise ModelLimitError(
            f"{file} is {info.st_size:,} bytes long, but only {512 * info.st_blocks:,} bytes are stored; the "
            "rest are holes. Copy the file again"
        )


def is_mostly_holes(info: os.stat_result) -> bool:
    """Return True if most of a large file is holes, which take no space on the disk; False if unknown."""
    blocks = getattr(info, "st_blocks", 0)  # Windows has no such number, and some file systems report 0
    return info.st_size > _SMALL and 0 < 512 * blocks < _MIN_DENSITY * info.st_size


def read_sizes(files: Iterable[Path]) -> WeightSizes | None:
    """Return the sizes in the headers of safetensors files; None if there is no file or one is unreadable.

    Raises ModelLimitError if a file is mostly holes.
    """
    from safetensors import SafetensorError, safe_open

    tensors = numbers = nbytes = 0
    for file in files:
        if not file.exists():
            return None
        check_density(file)
        nbytes += file.stat().st_size
        try:
            with safe_open(file, framework="pt") as weights:
                names = list(weights.keys())
                tensors += len(names)
                numbers += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError):  # transformers reports the error
            return None
    return WeightSizes(tensors, numbers, nbytes) if tensors else None


def check_counts(config: Any, name: str = "") -> None:
    """Raise ModelLimitError if a config at any depth has a huge number of layers or other parts."""
    if isinstance(config, dict):
        for key, value in config.items():
            check_counts(value, key)
    elif isinstance(config, list):
        for value in config:
            check_counts(value, name)
    elif isinstance(config, int) and abs(config) > MAX_COUNT and _is_count(name):
        raise ModelLimitError(f"config.json: {name}={config:,}: limit {MAX_COUNT:,}; correct the config")


def _is_count(name: str) -> bool:
    return bool(_COUNTS.search(name)) and not _SIZES.search(name)


@contextmanager
def size_limits(source: os.PathLike[str] | str, sizes: WeightSizes | None, quantized: bool) -> Iterator[None]:
    """Limit the modules, weights and buffers of a model that this thread builds in this scope.

    Args:
        source: Folder or file of the model, for the error.
        sizes: Sizes in the weight files; None limits the number of modules only.
        quantized: True if the weight files store several weights in a number.

    Raises ModelLimitError, before memory is allocated, if the model exceeds a limit.
    """
    thread = threading.get_ident()
    modules = numbers = nbytes = 0
    most_modules = MIN_MODULES + (MODULES_PER_TENSOR * sizes.tensors if sizes else 0)
    most_numbers = most_bytes = math.inf
    if sizes:
        rate = NUMBERS_PER_BYTE * sizes.nbytes if quantized else NUMBERS_PER_NUMBER * sizes.numbers
        most_numbers, most_bytes = MIN_NUMBERS + rate, MIN_BUFFER_BYTES + 4 * sizes.nbytes

    def check(value: float, most: float, unit: str) -> None:
        if value > most:
            raise ModelLimitError(
                f"the model at {str(source)!r} is refused: its config asks for more than {int(most):,} "
                f"{unit}, which does not fit its weight files. Correct the config; if you trust the model's "
                "author, pass trust=True"
            )

    def count_module(parent: Any, name: str, module: Any) -> None:
        nonlocal modules
        if thread == threading.get_ident():
            modules += 1
            check(modules, most_modules, "modules")

    def count_parameter(parent: Any, name: str, parameter: Any) -> None:
        nonlocal numbers
        # Weights that are read from a file replace those on the meta device.
        if thread == threading.get_ident() and isinstance(parameter, torch.Tensor) and parameter.is_meta:
            numbers += parameter.numel()
            check(numbers, most_numbers, "weights")

    def count_buffer(parent: Any, name: str, buffer: Any) -> None:
        nonlocal nbytes
        if thread == threading.get_ident() and isinstance(buffer, torch.Tensor) and buffer.is_meta:
            nbytes += buffer.nbytes
            check(nbytes, most_bytes, "bytes of buffers")

    hooks = [
        registration.register_module_module_registration_hook(count_module),
        registration.register_module_parameter_registration_hook(count_parameter),
        registration.register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
