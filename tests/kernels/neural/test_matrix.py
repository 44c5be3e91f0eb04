"""Matrix memories in parts, with saved and recomputed states, compared with autograd through the loop."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural_memory
from scrubjay.kernels.neural import matrix


def draw(chunks, heads=2, chunk_size=4, width=3, borders=True, seed=0) -> dict[str, Any]:
    """Return random arguments of neural_memory for a batch of two, with one matrix per head."""
    generator = torch.Generator().manual_seed(seed)
    time = chunks * chunk_size

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    step = uniform(2, time, heads) / chunk_size
    arguments: dict[str, Any] = {
        "query": functional.normalize(normal(2, time, heads, width), dim=-1),
        "key": functional.normalize(normal(2, time, heads, width), dim=-1),
        "value": normal(2, time, heads, width),
        "gates": Gates(step, *(-uniform(2, time, heads) for _ in range(2))),
        "weights": [normal(heads, width, width) / width],
        "state": NeuralState(*(normal(2, heads, width**2) * 0.3 for _ in range(3))),
        "chunk_size": chunk_size,
    }
    if borders:
        arguments |= {
            "valid": uniform(2, time) < 0.8,
            "fresh": uniform(2, chunks) < 0.3,
            "cut": uniform(2, chunks) < 0.3,
        }
    return arguments


def gradients(arguments: dict[str, Any], implementation: Any, outputs=(0, 1, 2, 3)) -> list[torch.Tensor]:
    """Return all results, and the gradients of those whose indices are in `outputs`."""
    tokens = [arguments[name] for name in ("query", "key", "value")]
    inputs = [*tokens, *arguments["gates"], *arguments["weights"], *arguments["state"]]
    inputs = [x.requires_grad_() for x in inputs]
    y, surprise, after = neural_memory(**arguments, implementation=implementation)
    if "valid" in arguments:
        y = torch.where(arguments["valid"][..., None, None], y, 0)
        surprise = torch.where(arguments["valid"][..., None], surprise, 0)
    losses = [(y, *after)[index].pow(3).sum() for index in outputs]
    grads = torch.autograd.grad(losses, inputs, allow_unused=True, materialize_grads=True)
    return [y, surprise, *after, *grads]


@pytest.mark.parametrize("max_bytes", [0, 2**40])
@pytest.mark.parametrize("chunks", [1, 2, 5, 19])
@pytest.mark.parametrize("heads", [1, 3])
def test_chunks_in_parts_equal_the_loop(chunks, max_bytes, heads, monkeypatch):
    expected = gradients(draw(19, heads, seed=chunks), "closed")
    monkeypatch.setattr(matrix, "_MAX_TOKEN_NUMBERS", chunks * 2 * heads * 4 * 3)
    monkeypatch.setattr(matrix, "_MAX_SAVED_BYTES", max_bytes)
    result = gradients(draw(19, heads, seed=chunks), "torch")
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [[0], [1], [2], [3], [1, 3], [0, 2]])
def test_gradients_of_some_of_the_outputs(outputs):
    expected = gradients(draw(3, 1, seed=4), "closed", outputs)
    torch.testing.assert_close(
        gradients(draw(3, 1, seed=4), "torch", outputs), expected, rtol=1e-12, atol=1e-12
    )


def test_long_sequences_save_few_states(monkeypatch):
    def count_saved():
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            gradients(draw(64, 2, chunk_size=2, width=40, borders=False), "torch")
        return sum(sizes)

    monkeypatch.setattr(matrix, "_MAX_TOKEN_NUMBERS", 8 * 2 * 2 * 2 * 40)
    many = count_saved()
    monkeypatch.setattr(matrix, "_MAX_SAVED_BYTES", 0)
    states = 64 * 2 * 2 * 2 * 40**2
    assert many - count_saved() > 0.9 * states


def test_a_cut_stops_the_gradients_of_older_anchors():
    arguments = draw(3, borders=False)
    # The first chunk is incomplete, so the second uses the initial anchor, which lies before the cut.
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[:, 3] = False
    cut = torch.tensor([[False, True, False], [False, False, False]])
    state = NeuralState(*(part.requires_grad_() for part in arguments["state"]))
    y, _, _ = neural_memory(**{**arguments, "state": state, "valid": valid, "cut": cut})
    (grad_anchor,) = torch.autograd.grad(y[:, 4:].sum(), [state.anchor])
    assert not grad_anchor[0].any()
    assert grad_anchor[1].any()
