"""Tests of Routing against naive loops and causal attention, and of its centroids' gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from scrubjay.memory.sparse import routing
from scrubjay.memory.sparse.routing import RoutingConfig, route

from ..oracles import beside_oracles


def layer_norm(x):
    return functional.layer_norm(x, x.shape[-1:])


class Oracle:
    """Reference for one batch row and one step at a time: a list for the window and for each centroid."""

    def __init__(self, module):
        self.module, self.config = module, module.config
        self.restart()

    def restart(self):
        layers = self.module.layers
        self.window = [[] for _ in layers]
        self.rings = [[[] for _ in range(self.config.num_centroids)] for _ in layers]

    def step(self, x):
        for layer, window, rings in zip(self.module.layers, self.window, self.rings, strict=True):
            inner = layer.norm(x)
            query, key, value = (
                layer_norm(layer.query(inner)),
                layer_norm(layer.key(inner)),
                layer.value(inner),
            )
            centroid_index, share = self.nearest(layer, query)
            window.append((key, value))
            read = []
            for head, biases in enumerate(layer.distances):
                part = slice(head * len(query) // layer.heads, (head + 1) * len(query) // layer.heads)
                near = [(key, value, biases[age]) for age, (key, value) in enumerate(reversed(window))]
                far = [(key, value, share) for key, value in rings[centroid_index][-self.config.capacity :]]
                scale = len(query[part]) ** -0.5
                scores = [query[part] @ key[part] * scale + bias for key, _, bias in near + far]
                weights = torch.softmax(torch.stack(scores), dim=0)
                read.append(weights @ torch.stack([value[part] for _, value, _ in near + far]))
            if len(window) > self.config.window:
                left = window.pop(0)
                rings[self.nearest(layer, left[0])[0]].append(left)
            x = x + layer.out(torch.cat(read))
            x = x + layer.feed_forward(x)
        return x

    def nearest(self, layer, x):
        products = torch.stack([x @ centroid / centroid.norm() for centroid in layer.centroids])
        centroid_index = int(products.argmax())
        return centroid_index, products[centroid_index] - math.log(
            sum(math.exp(product) for product in products)
        )

    def ring(self, layer):
        """Return the keys of all rings; a step's slot is its number in its centroid modulo the capacity."""
        capacity = self.config.capacity
        slots = torch.zeros(self.config.num_centroids * capacity, self.config.dim, dtype=torch.float64)
        for centroid, steps in enumerate(self.rings[layer]):
            for number, (key, _) in enumerate(steps):
                slots[centroid * capacity + number % capacity] = key
        return slots


def build(dim=8, seed=0, **sizes):
    torch.manual_seed(seed)
    module = RoutingConfig(dim=dim, **{"num_heads": 2, **sizes}).build().double()
    with torch.no_grad():
        for layer in module.layers:
            layer.distances.normal_()
            layer.centroids.normal_()
    return module


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_centroids=st.integers(1, 4),
    capacity=st.integers(1, 4),
    window=st.integers(1, 5),
    num_layers=st.integers(1, 2),
    time=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39), max_size=4),
    start_rate=st.sampled_from([0.0, 0.1, 0.5]),
)
@torch.no_grad()
def test_any_cut_any_start_equals_the_oracle(
    seed, num_centroids, capacity, window, num_layers, time, cuts, start_rate
):
    module = build(
        seed=seed, num_centroids=num_centroids, capacity=capacity, window=window, num_layers=num_layers
    )
    state, oracles = beside_oracles(module, lambda: Oracle(module), time, cuts, start_rate, 1e-8)
    for row, oracle in enumerate(oracles):
        for layer, rings in enumerate(oracle.rings):
            assert state[f"counts_{layer}"][row].tolist() == [len(steps) for steps in rings]
            torch.testing.assert_close(state[f"keys_{layer}"][row], oracle.ring(layer))


@torch.no_grad()
def test_one_centroid_with_room_for_all_is_causal_attention():
    module = build(dim=16, num_centroids=1, capacity=40, window=4)
    layer = module.layers[0]
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    y, _ = module(x, module.initial_state(2))
    query, key, value = (
        part.unflatten(2, (2, -1)).transpose(1, 2) for part in layer.project(x, torch.float64)
    )
    behind = torch.arange(40)[:, None] - torch.arange(40)
    bias = functional.pad(layer.distances, (0, 1))[:, behind.clamp(0, 5)].masked_fill(behind < 0, -math.inf)
    read = functional.scaled_dot_product_attention(query, key, value, bias)
    torch.testing.assert_close(y, layer.finish(x, read.transpose(1, 2).flatten(2)))


@torch.no_grad()
def test_what_went_to_other_centroids_counts_nothing():
    module = build(num_centroids=4, capacity=3, window=2)
    x = torch.randn(3, 60, 8, dtype=torch.float64)
    _, state = module(x, module.initial_state(3))
    asking = torch.randn(3, 1, 8, dtype=torch.float64)
    layer = module.layers[0]
    centroid_index = route(layer.project(asking, torch.float64).query, layer.centroids).centroid
    others = (torch.arange(12) // 3 != centroid_index)[..., None]
    assert (state["counts_0"].gather(1, centroid_index) > 0).all()

    def answer(**new_state):
        return module(asking, state | new_state)[0]

    anything = {name: torch.randn_like(state[name]) for name in ("keys_0", "values_0")}
    expected = answer()
    assert torch.equal(answer(**{n: torch.where(others, v, state[n]) for n, v in anything.items()}), expected)
    mine = {n: torch.where(others, state[n], v) for n, v in anything.items()}
    assert ((answer(**mine) - expected).abs().amax(dim=(1, 2)) > 1e-6).all()


@torch.no_grad()
def test_what_is_rare_stays_however_long_ago_it_was():
    """Only steps of the same centroid evict a step from a ring."""
    module = build(num_centroids=2, capacity=2, window=1)
    layer = module.layers[0]
    kinds = torch.randn(200, 8, dtype=torch.float64)
    centroid_index = route(layer.project(kinds[None], torch.float64).key, layer.centroids).centroid[0]
    rare, common = kinds[centroid_index == 0][:1], kinds[centroid_index == 1]
    steps = torch.cat([rare, common, common, common])[None]
    _, state = module(steps, module.initial_state(1))
    assert state["counts_0"].tolist() == [[1, 3 * len(common) - 1]]
    torch.testing.assert_close(state["keys_0"][0, :1], layer.project(rare[None], torch.float64).key[0])


def test_the_gradient_of_centroids_is_its_closed_form():
    """The weight w of routed steps depends on log p: dy / dlog p = w (1 - w) (routed - near)."""
    module = build(num_centroids=3, capacity=4, window=2, num_heads=1)
    layer = module.layers[0]
    with torch.no_grad():
        _, state = module(torch.randn(4, 50, 8, dtype=torch.float64), module.initial_state(4))
    x = torch.randn(4, 1, 8, dtype=torch.float64)
    y, _ = module(x, state)
    along = torch.randn_like(y)
    result = torch.autograd.grad(y, layer.centroids, along)[0]

    query, key, value = (part[:, 0] for part in layer.project(x, torch.float64))
    centroid_index, share = (part[:, 0] for part in route(query[:, None], layer.centroids))
    near_keys = torch.cat([state["recent_keys_0"], key[:, None]], dim=1)
    near_values = torch.cat([state["recent_values_0"], value[:, None]], dim=1)
    slots = centroid_index[:, None] * 4 + torch.arange(4)
    slots_there = torch.arange(4) < state["counts_0"].gather(1, centroid_index[:, None])
    rows = torch.arange(4)[:, None]
    near = (near_keys @ query[..., None])[..., 0] * 8**-0.5 + layer.distances.flip(1)
    far = (state["keys_0"][rows, slots] @ query[..., None])[..., 0] * 8**-0.5 + share[:, None]
    far = far.masked_fill(~slots_there, -math.inf)
    w = torch.sigmoid(far.logsumexp(1) - near.logsumexp(1))[:, None]
    routed_out = (far.softmax(1)[..., None] * state["values_0"][rows, slots]).sum(1)
    window = (near.softmax(1)[..., None] * near_values).sum(1)
    read = (w * routed_out + (1 - w) * window)[:, None].detach().requires_grad_()
    of_read = torch.autograd.grad(layer.finish(x, read), read, along)[0][:, 0]
    gain = (of_read * w * (1 - w) * (routed_out - window)).sum(1)
    p = torch.softmax(query @ functional.normalize(layer.centroids, dim=1).T, dim=1)
    expected = torch.zeros_like(result)
    for row in range(4):
        for centroid, vector in enumerate(layer.centroids):
            unit = vector / vector.norm()
            across = (query[row] - unit * (unit @ query[row])) / vector.norm()
            expected[centroid] += (
                gain[row] * (float(centroid_index[row] == centroid) - p[row, centroid]) * across
            )
    torch.testing.assert_close(result, expected.detach())


@torch.no_grad()
def test_lengths_of_centroids_are_nothing_and_directions_all():
    module = build(num_centroids=4)
    centroids = module.layers[0].centroids
    x = torch.randn(3, 20, 8, dtype=torch.float64)
    expected = route(x, centroids)
    longer = route(x, centroids * torch.rand(4, 1, dtype=torch.float64).add(0.1))
    assert torch.equal(longer.centroid, expected.centroid)
    torch.testing.assert_close(longer.log_prob, expected.log_prob)
    assert torch.equal(route(x, centroids.flip(0)).centroid, 3 - expected.centroid)


@torch.no_grad()
def test_a_long_segment_is_many_parts(monkeypatch):
    module = build(num_centroids=3, capacity=4, window=5, num_layers=2)
    x = torch.randn(2, 50, 8, dtype=torch.float64)
    start = torch.rand(2, 50) < 0.1
    expected = module(x, module.initial_state(2), start)
    monkeypatch.setattr(routing, "_STEPS_AT_ONCE", 7)
    y, state = module(x, module.initial_state(2), start)
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(state, expected[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_centroids": 0}, "num_centroids=0: must be at least 1"),
        ({"capacity": 0}, "capacity=0: must be at least 1"),
        ({"window": -1}, "window=-1: must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(dim=16, **fields)
