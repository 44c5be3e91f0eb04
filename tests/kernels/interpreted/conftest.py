"""What tests under Triton's interpreter share: its speed, broken copies of a kernel, poisoned memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from triton import language
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> Iterator[None]:
    """Spare the interpreter work that it repeats; every result stays as it is.

    It puts its own functions into triton.language at each call of a device function, builds a table of all
    dtypes at each look-up of one, writes out and checks the type of every number anew, works out whether
    whole numbers overflow for an assertion that it then leaves out, and reduces by exclusive or, as sorting
    does, one element at a time. A Triton that does not know these names runs as it comes.
    """
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(interpreter, "_LangPatchScope"):
            patch.setattr(interpreter, "_patch_lang", _once_a_launch(interpreter._patch_lang))
        if hasattr(interpreter, "_get_np_dtype"):
            patch.setattr(interpreter, "_get_np_dtype", _remembered(interpreter._get_np_dtype))
        options = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
        if options is not None and not getattr(options, "debug", True):
            quick = dataclasses.replace(options, sanitize_overflow=False)
            patch.setattr(interpreter.interpreter_builder, "options", quick)
        core, semantic = language.core, TritonSemantic
        patch.setattr(core.block_type, "__init__", _once_a_type(core.block_type.__init__))
        patch.setattr(core.tensor, "__init__", _of_its_type(core.tensor.__init__))
        patch.setattr(core.dtype, "__eq__", _or_the_same(core.dtype.__eq__))
        patch.setattr(core, "_unwrap_if_constexpr", _plain_first(core._unwrap_if_constexpr))
        patch.setattr(semantic, "broadcast_impl_value", _by_shapes(semantic.broadcast_impl_value))
        combine = getattr(language.standard, "_xor_combine", None)
        if combine is not None and hasattr(interpreter, "ReduceOps"):
            patch.setattr(interpreter.ReduceOps, "apply_impl", _xor_at_once(combine))
        yield


def _once_a_launch(patch_lang: Callable[[Any], Any]) -> Callable[[Any], Any]:
    done: set[tuple[bool, ...]] = set()
    seen: dict[Any, tuple[bool, ...]] = {}

    def patch(fn: Any) -> Any:
        if fn not in seen:
            modules = [value for value in fn.__globals__.values() if isinstance(value, ModuleType)]
            seen[fn] = tuple(any(m is of for m in modules) for of in (language, language.core))
        if seen[fn] in done:
            return None  # within a launch; only the launch itself restores
        begins, scope = not done, patch_lang(fn)
        done.add(seen[fn])
        if begins:
            restore = scope.restore
            scope.restore = lambda: (done.clear(), restore())
        return scope

    return patch


def _remembered(get_dtype: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    found: dict[str, np.dtype] = {}

    def get(dtype: Any) -> np.dtype:
        element = getattr(dtype, "element_ty", dtype)
        if dtype.is_ptr() or element.is_ptr():
            return get_dtype(dtype)
        if element.name not in found:
            found[element.name] = get_dtype(element)
        return found[element.name]

    return get


def _once_a_type(begin: Callable[..., None]) -> Callable[..., None]:
    made: dict[tuple[int, ...], dict[str, Any]] = {}

    def begin_once(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = (size.value if type(size) is language.core.constexpr else size for size in shape)
        # What is kept holds the elements' type, so no other comes to have its number.
        key = (id(element_ty), *sizes)
        if key not in made:
            begin(self, element_ty, shape)
            made[key] = self.__dict__
        self.__dict__ = made[key]

    return begin_once


def _of_its_type(begin: Callable[..., None]) -> Callable[..., None]:
    """Give tensors of one type the same shape, which nothing changes."""
    scalar: dict[str, Any] = {}

    def begin_alike(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__ if type.is_block() else scalar
        if "of_tensor" not in known:
            begin(self, handle, type)
            known["of_tensor"] = self.shape, self.numel
        self.shape, self.numel = known["of_tensor"]
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return begin_alike


def _or_the_same(equal: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda self, other: self is other or equal(self, other)


def _plain_first(unwrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    plain = (int, float, bool, str, type(None), language.core.dtype, language.core.tensor)

    def quick(value: Any) -> Any:
        kind = type(value)
        if kind is language.core.constexpr:
            return value.value
        return value if kind in plain else unwrap(value)

    return quick


def _by_shapes(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    def quick(self: Any, left: Any, right: Any) -> Any:
        blocks = [of.type.shape.values for of in (left, right) if of.type.is_block()]
        if not blocks or (len(blocks) == 2 and blocks[0] == blocks[1]):
            return left, right
        if len(blocks) == 1 or len(blocks[0]) != len(blocks[1]):
            return broadcast(self, left, right)
        pairs = list(zip(*blocks, strict=True))
        if any(a != b and 1 not in (a, b) for a, b in pairs):
            return broadcast(self, left, right)
        shape = [max(pair) for pair in pairs]
        return tuple(
            of
            if own == shape
            else self.make_tensor(
                self.builder.create_broadcast(of.handle, shape),
                language.core.block_type(of.type.scalar, shape),
            )
            for of, own in zip((left, right), blocks, strict=True)
        )

    return quick


def _xor_at_once(combine: Any) -> Callable[[Any, Any], Any]:
    apply = interpreter.ReduceOps.apply_impl

    def quick(self: Any, given: Any) -> Any:
        if self.combine_fn is not combine:
            return apply(self, given)
        data = np.bitwise_xor.reduce(given[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, given[0].dtype)

    return quick


@pytest.fixture
def mutated(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """`mutated(module, old, new)`: the module or package with every `old` of its source replaced by `new`."""
    loaded: list[str] = []

    def load(source: ModuleType, old: str, new: str) -> ModuleType:
        path = Path(inspect.getfile(source))
        name = f"_mutant_{len(loaded)}"
        # Files, because triton.jit reads the source of the functions it is given; of a package all, which
        # then import each other.
        whole = path.name == "__init__.py"
        texts = {
            file.relative_to(path.parent): file.read_text()
            for file in (path.parent.rglob("*.py") if whole else [path])
        }
        assert any(old in text for text in texts.values()), (
            f"{source.__name__} does not contain {old!r}: out of date"
        )
        for place, text in texts.items():
            file = tmp_path / name / place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace(old, new).replace(f"{source.__name__}.", f"{name}."))
        folders = [str(tmp_path / name)] if whole else None
        file = tmp_path / name / path.name
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] in loaded]:
        del sys.modules[name]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what torch.empty, empty_like and Tensor.new_empty return with NaN, or a huge integer."""

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
