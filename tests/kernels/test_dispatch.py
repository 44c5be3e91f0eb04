"""Selection of the implementation of an op."""

import contextlib
import subprocess
import sys
from typing import Any, cast

import pytest
import torch
from torch.autograd import forward_ad

from scrubjay.kernels import chunk_retrieval, dispatch, force


def draw(seed) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "query": torch.randn(2, 5, 4, 6, generator=generator),
        "keys": torch.randn(2, 6, 3, 2, 6, generator=generator),
        "values": torch.randn(2, 6, 3, 2, 6, generator=generator),
        "summaries": torch.randn(2, 6, 2, 6, generator=generator),
        "valid": torch.randint(0, 7, (2, 5), generator=generator),
    }


def test_the_switch_forces_one_implementation_and_an_argument_outranks_it():
    arguments = draw(20)
    with force("reference"):
        y_reference = chunk_retrieval(**arguments, top_k=2)
        y_dense = chunk_retrieval(**arguments, top_k=2, implementation="dense")
    assert torch.equal(y_reference, chunk_retrieval(**arguments, top_k=2, implementation="reference"))
    assert torch.equal(y_dense, chunk_retrieval(**arguments, top_k=2, implementation="dense"))
    assert not torch.equal(y_reference, y_dense)


def test_unknown_and_unusable_implementations_are_explained():
    arguments = draw(21)
    names: list[Any] = ["cuda", "triton"]
    with pytest.raises(ValueError, match="implementation='cuda'; choose from auto, reference"):
        chunk_retrieval(**arguments, top_k=2, implementation=names[0])
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        chunk_retrieval(**arguments, top_k=2, implementation=names[1])
    with pytest.raises(ValueError, match="implementation='sparse'"), force(cast(Any, "sparse")):
        pass


def test_the_previous_default_is_restored_after_a_block_even_one_that_fails():
    with force("reference"):
        with force("torch"):
            assert dispatch.resolve("auto", torch.zeros(1)) == "torch"
        with contextlib.suppress(KeyError), force("torch"):
            raise KeyError
        assert dispatch.resolve("auto", torch.zeros(1)) == "reference"
    assert dispatch.resolve("auto", torch.zeros(1)) == "torch"


def test_an_ops_own_paths_are_known_to_it_alone():
    assert dispatch.resolve("dense", torch.zeros(1), paths=("dense",)) == "dense"
    with pytest.raises(ValueError, match=r"choose from auto, reference, torch, triton$"):
        dispatch.resolve("dense", torch.zeros(1))


def test_sizes_without_a_kernel_raise_for_triton_and_fall_back_for_auto():
    with pytest.raises(ValueError, match="implementation='triton': too wide; use 'torch' or 'auto'"):
        dispatch.resolve("triton", torch.zeros(1), unsupported_reason="too wide")
    assert dispatch.resolve("auto", torch.zeros(1), unsupported_reason="too wide") == "torch"


def test_without_autocast_an_op_multiplies_in_full_and_its_caller_in_half_again():
    product = dispatch.without_autocast(lambda a, b: a @ b)
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x, b=x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_tangents_are_seen_within_their_level_only():
    x = torch.ones(2)
    assert not dispatch.any_dual(x, None)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones(2))
        assert dispatch.any_dual(None, dual)
        assert not dispatch.any_dual(x)
        assert dispatch.needs_plain_autograd(dual)


def test_dtypes_without_a_kernel_are_named():
    assert dispatch.unsupported_dtype(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)) is None
    assert "not torch.float64" in str(dispatch.unsupported_dtype(torch.zeros(1), torch.zeros(1).double()))


@pytest.mark.parametrize("implementation", ["gather", "dense"])
def test_an_implementation_is_found_while_torch_compiles(implementation, monkeypatch):
    """The compiler cannot trace an import, so the module must be a constant of the graph."""
    monkeypatch.setattr(dispatch, "_LOADED", {})
    arguments = draw(0)

    def retrieve(query):
        return chunk_retrieval(**(arguments | {"query": query}), top_k=2, implementation=implementation)

    compile_retrieve = torch.compile(retrieve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compile_retrieve(arguments["query"]), retrieve(arguments["query"]))


@pytest.mark.slow
def test_an_import_of_the_kernels_does_not_import_the_compiler():
    code = "import sys, scrubjay.kernels.retrieval.op; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
