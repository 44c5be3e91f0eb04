"""What tests of kernels under Triton's interpreter share: broken copies of a kernel file, and poisoned memory."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def mutated(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """`mutated(path_or_module, old, new)`: the module with every `old` of its source replaced by `new`."""
    loaded: list[str] = []

    def load(source: str | Path | ModuleType, old: str, new: str) -> ModuleType:
        path = Path(inspect.getfile(source)) if isinstance(source, ModuleType) else Path(source)
        text = path.read_text()
        assert old in text, f"{path.name} does not contain {old!r}: the mutation is out of date"
        name = f"_mutant_{len(loaded)}_{path.stem}"
        # A file, because triton.jit reads the source of the functions it is given.
        file = tmp_path / f"{name}.py"
        file.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty, torch.empty_like and Tensor.new_empty return with NaN, or with a huge integer."""

    def poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def poisoned_allocation(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.dtype.is_floating_point:
                return tensor.fill_(float("nan"))
            return tensor.fill_(
                True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max // 2 + 1
            )

        return poisoned_allocation

    monkeypatch.setattr(torch, "empty", poisoning(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoning(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty))
