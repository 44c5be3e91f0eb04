"""Fixtures of the tests under Triton's interpreter: faster interpretation, broken kernels, memory of NaN."""

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
def _speed_up_interpreter() -> Iterator[None]:
    """Avoid repeated work of the interpreter, without changing any result.

    The interpreter patches triton.language at each call of a device function, builds a table of all dtypes at
    each look-up of one, creates and checks the type of every number again, checks integer overflow for an
    assertion that is disabled, and reduces by exclusive or, as sorting does, one element at a time. Names
    that this version of Triton does not have are skipped.
    """
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(interpreter, "_LangPatchScope"):
            patch.setattr(interpreter, "_patch_lang", _patch_once_per_launch(interpreter._patch_lang))
        if hasattr(interpreter, "_get_np_dtype"):
            patch.setattr(interpreter, "_get_np_dtype", _cache_dtypes(interpreter._get_np_dtype))
        options = getattr(getattr(interpreter, "interpreter_builder", None), "options", None)
        if options is not None and not getattr(options, "debug", True):
            quick = dataclasses.replace(options, sanitize_overflow=False)
            patch.setattr(interpreter.interpreter_builder, "options", quick)
        core, semantic = language.core, TritonSemantic
        patch.setattr(core.block_type, "__init__", _init_once_per_type(core.block_type.__init__))
        patch.setattr(core.tensor, "__init__", _share_shapes(core.tensor.__init__))
        patch.setattr(core.dtype, "__eq__", _compare_identity_first(core.dtype.__eq__))
        patch.setattr(core, "_unwrap_if_constexpr", _unwrap_plain_first(core._unwrap_if_constexpr))
        patch.setattr(semantic, "broadcast_impl_value", _broadcast_by_shape(semantic.broadcast_impl_value))
        combine = getattr(language.standard, "_xor_combine", None)
        if combine is not None and hasattr(interpreter, "ReduceOps"):
            patch.setattr(interpreter.ReduceOps, "apply_impl", _reduce_xor_in_numpy(combine))
        yield


def _patch_once_per_launch(patch_lang: Callable[[Any], Any]) -> Callable[[Any], Any]:
    patched_sets: set[tuple[bool, ...]] = set()
    modules_by_function: dict[Any, tuple[bool, ...]] = {}

    def patch(fn: Any) -> Any:
        if fn not in modules_by_function:
            modules = [value for value in fn.__globals__.values() if isinstance(value, ModuleType)]
            modules_by_function[fn] = tuple(any(m is of for m in modules) for of in (language, language.core))
        if modules_by_function[fn] in patched_sets:
            return None  # inside a launch; only the launch itself restores
        is_first, scope = not patched_sets, patch_lang(fn)
        patched_sets.add(modules_by_function[fn])
        if is_first:
            restore = scope.restore
            scope.restore = lambda: (patched_sets.clear(), restore())
        return scope

    return patch


def _cache_dtypes(get_dtype: Callable[[Any], np.dtype]) -> Callable[[Any], np.dtype]:
    dtypes: dict[str, np.dtype] = {}

    def get(dtype: Any) -> np.dtype:
        element = getattr(dtype, "element_ty", dtype)
        if dtype.is_ptr() or element.is_ptr():
            return get_dtype(dtype)
        if element.name not in dtypes:
            dtypes[element.name] = get_dtype(element)
        return dtypes[element.name]

    return get


def _init_once_per_type(init: Callable[..., None]) -> Callable[..., None]:
    attributes_by_type: dict[tuple[int, ...], dict[str, Any]] = {}

    def init_once(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = (size.value if type(size) is language.core.constexpr else size for size in shape)
        # The cached attributes hold the element type, so its id is not reused.
        key = (id(element_ty), *sizes)
        if key not in attributes_by_type:
            init(self, element_ty, shape)
            attributes_by_type[key] = self.__dict__
        self.__dict__ = attributes_by_type[key]

    return init_once


def _share_shapes(init: Callable[..., None]) -> Callable[..., None]:
    """Share the shape between all tensors of one type; it is never modified."""
    scalar: dict[str, Any] = {}

    def init_shared(self: Any, handle: Any, type: Any) -> None:
        cache = type.__dict__ if type.is_block() else scalar
        if "tensor_shape" not in cache:
            init(self, handle, type)
            cache["tensor_shape"] = self.shape, self.numel
        self.shape, self.numel = cache["tensor_shape"]
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return init_shared


def _compare_identity_first(equal: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    return lambda self, other: self is other or equal(self, other)


def _unwrap_plain_first(unwrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    plain = (int, float, bool, str, type(None), language.core.dtype, language.core.tensor)

    def quick(value: Any) -> Any:
        kind = type(value)
        if kind is language.core.constexpr:
            return value.value
        return value if kind in plain else unwrap(value)

    return quick


def _broadcast_by_shape(broadcast: Callable[..., Any]) -> Callable[..., Any]:
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


def _reduce_xor_in_numpy(combine: Any) -> Callable[[Any, Any], Any]:
    apply = interpreter.ReduceOps.apply_impl

    def quick(self: Any, inputs: Any) -> Any:
        if self.combine_fn is not combine:
            return apply(self, inputs)
        data = np.bitwise_xor.reduce(inputs[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, inputs[0].dtype)

    return quick


@pytest.fixture
def mutate_module(tmp_path: Path) -> Iterator[Callable[..., ModuleType]]:
    """Return a function (module, old, new) that loads a copy of a module or package with `new` for `old`."""
    module_names: list[str] = []

    def load(source: ModuleType, old: str, new: str) -> ModuleType:
        path = Path(inspect.getfile(source))
        name = f"_mutant_{len(module_names)}"
        # Written to files, because triton.jit reads the source of its functions. A package is copied as a
        # whole, so that the copies import each other.
        is_package = path.name == "__init__.py"
        texts = {
            file.relative_to(path.parent): file.read_text()
            for file in (path.parent.rglob("*.py") if is_package else [path])
        }
        assert any(old in text for text in texts.values()), (
            f"{source.__name__} does not contain {old!r}: update the mutation"
        )
        for relative_path, text in texts.items():
            file = tmp_path / name / relative_path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace(old, new).replace(f"{source.__name__}.", f"{name}."))
        folders = [str(tmp_path / name)] if is_package else None
        file = tmp_path / name / path.name
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        module_names.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] in module_names]:
        del sys.modules[name]


@pytest.fixture
def poison_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the results of torch.empty, empty_like and Tensor.new_empty with NaN, or a huge integer."""

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
