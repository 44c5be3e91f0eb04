"""Matrices' chunks in parts, with states kept and made again, against the loop that autograd follows."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.kernels import Gates, NeuralState, neural_memory
from scrubjay.kernels.neural import matrix


def draw(chunks, heads=2, chunk_size=4, width=3, borders=True, seed=0) -> dict[str, Any]:
    """Return arguments of neural_memory for two rows of matrices."""
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


def gradients(arguments: dict[str, Any], implementation: Any, wanted=(0, 1, 2, 3)) -> list[torch.Tensor]:
    """Return outputs and the gradients of some of them."""
    named = [arguments[name] for name in ("query", "key", "value")]
    inputs = [*named, *arguments["gates"], *arguments["weights"], *arguments["state"]]
    inputs = [x.requires_grad_() for x in inputs]
    y, surprise, after = neural_memory(**arguments, implementation=implementation)
    if "valid" in arguments:
        y = torch.where(arguments["valid"][..., None, None], y, 0)
        surprise = torch.where(arguments["valid"][..., None], surprise, 0)
    asked = [(y, *after)[index].pow(3).sum() for index in wanted]
    found = torch.autograd.grad(asked, inputs, allow_unused=True, materialize_grads=True)
    return [y, surprise, *after, *found]


@pytest.mark.parametrize("kept", [0, 2**40])
@pytest.mark.parametrize("chunks", [1, 2, 5, 19])
@pytest.mark.parametrize("heads", [1, 3])
def test_chunks_in_parts_equal_the_loop(chunks, kept, heads, monkeypatch):
    expected = gradients(draw(19, heads, seed=chunks), "closed")
    monkeypatch.setattr(matrix, "_MOST_NUMBERS", chunks * 2 * heads * 4 * 3)
    monkeypatch.setattr(matrix, "_MOST_KEPT", kept)
    found = gradients(draw(19, heads, seed=chunks), "torch")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [1, 3], [0, 2]])
def test_outputs_asked_for_alone_have_their_gradients(wanted):
    expected = gradients(draw(3, 1, seed=4), "closed", wanted)
    torch.testing.assert_close(
        gradients(draw(3, 1, seed=4), "torch", wanted), expected, rtol=1e-12, atol=1e-12
    )


def test_long_sequences_keep_few_states(monkeypatch):
    def saved():
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            gradients(draw(64, 2, chunk_size=2, width=40, borders=False), "torch")
        return sum(sizes)

    monkeypatch.setattr(matrix, "_MOST_NUMBERS", 8 * 2 * 2 * 2 * 40)
    many = saved()
    monkeypatch.setattr(matrix, "_MOST_KEPT", 0)
    states = 64 * 2 * 2 * 2 * 40**2
    assert many - saved() > 0.9 * states


def test_a_cut_holds_for_anchors_older_than_it():
    arguments = draw(3, borders=False)
    # The first chunk is not complete, so the second learns at the anchor given, beyond a cut.
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[:, 3] = False
    cut = torch.tensor([[False, True, False], [False, False, False]])
    state = NeuralState(*(part.requires_grad_() for part in arguments["state"]))
    y, _, _ = neural_memory(**{**arguments, "state": state, "valid": valid, "cut": cut})
    (of_anchor,) = torch.autograd.grad(y[:, 4:].sum(), [state.anchor])
    assert not of_anchor[0].any()
    assert of_anchor[1].any()
