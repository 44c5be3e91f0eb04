"""Neural memories that follow their papers, compared with the equations and automatic differentiation."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay import memory

from ..oracles import beside_oracles

VARIANTS = ["titans", "moneta", "yaad", "memora"]


class Episode:
    """Reference for one batch row: every head has matrices of its own, and torch differentiates the loss."""

    def __init__(self, module):
        self.module, self.config, self.name = module, module.config, memory.name_of(module.config)
        self.restart()

    def restart(self):
        self.heads = [
            [self.initial_head(layer.memory, h) for h in range(self.config.heads)] for layer in self.layers
        ]
        self.history = [[] for _ in self.layers]

    @property
    def layers(self):
        return self.module.layers

    def initial_head(self, rule, h):
        matrices = [w[h].clone() for w in rule.weights]
        if self.name == "memora":
            matrices = [self.total(w) * torch.softmax(w, dim=0) for w in matrices]
        return {"matrices": matrices, "momenta": [torch.zeros_like(w) for w in matrices]}

    def total(self, matrix):
        return (self.config.dim / self.config.heads) ** 0.5

    def step(self, x):
        for index, layer in enumerate(self.layers):
            x = x + self.remember(layer.memory, layer.memory_norm(x), self.heads[index], self.history[index])
            x = x + layer.feed_forward(x)
        return x

    def remember(self, rule, x, heads, history):
        history.insert(0, rule.project_in(x))
        taps = zip(rule.convolution.flip(0), history, strict=False)
        inputs = torch.stack([tap * old for tap, old in taps]).sum(0)
        parts = functional.silu(inputs).view(3, len(heads), -1)
        gates = rule.gates(x).view(len(rule.gate_names), len(heads), -1)
        reads = []
        for h, head in enumerate(heads):
            query, key = (v / (v.square().sum() + 1e-6).sqrt() for v in parts[:2, h])
            values = dict(zip(rule.gate_names, gates[:, h], strict=True))
            self.learn(rule, h, head, key, parts[2, h], values)
            read = self.network(rule, h, self.weights(head["matrices"]), query)
            reads.append(read / (read.square().mean() + 1e-4).sqrt() * rule.out_norm.weight)
        return rule.out(torch.cat(reads) * functional.silu(rule.output_gate(x)))

    def weights(self, matrices):
        """Return the weights of the network: equation 24 for Moneta."""
        if self.name != "moneta":
            return matrices
        return [a / a.abs().pow(4).sum().pow(0.25) ** 2 for a in matrices]

    def network(self, rule, h, weights, x):
        if self.name == "titans":
            return functional.silu(x @ weights[0]) @ weights[1] if len(weights) > 1 else x @ weights[0]
        hidden = functional.gelu(x @ weights[0]) @ weights[1]
        normal = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
        return x + normal * rule.norm_scale[h] + rule.norm_shift[h]

    def gradients(self, rule, h, weights, key, value, threshold):
        """Return the gradients of the loss at these weights."""
        leaves = [w.detach().requires_grad_() for w in weights]
        with torch.enable_grad():
            error = self.network(rule, h, leaves, key) - value
            if self.name == "moneta":  # with the smooth sign and absolute value of the paper
                e = error.detach()
                loss = (3 * torch.tanh(10 * e) * (e**2 + 1e-6) * error).sum()
            elif self.name == "yaad":
                e = error.abs()
                loss = torch.where(e <= threshold, e**2 / 2, threshold * (e - threshold / 2)).sum()
            else:
                loss = error.square().sum() / 2
        return torch.autograd.grad(loss, leaves)

    def learn(self, rule, h, head, key, value, gates):
        largest = 0.1 if self.config.max_step is None else self.config.max_step
        step, retention = largest * torch.sigmoid(gates["step"]), 1 - torch.sigmoid(gates["forgetting"])
        threshold = functional.softplus(gates["threshold"]) if "threshold" in gates else None
        matrices = head["matrices"]
        gradients = self.gradients(rule, h, self.weights(matrices), key, value, threshold)
        for i, (matrix, gradient) in enumerate(zip(list(matrices), gradients, strict=True)):
            rates, retain = (self.along(gate, matrix, i, len(matrices)) for gate in (step, retention))
            if self.name == "titans":  # equations 13 and 14
                momentum = torch.sigmoid(gates["momentum"])
                head["momenta"][i] = momentum * head["momenta"][i] - rates * gradient
                matrices[i] = retain * matrix + head["momenta"][i]
            elif self.name == "memora":  # equation 27
                logits = retain * matrix.log() - rates * gradient
                matrices[i] = self.total(matrix) * torch.softmax(logits, dim=0)
            else:  # equations 24 and 26
                matrices[i] = retain * matrix - rates * gradient

    def along(self, gate, matrix, index, count):
        """Return a matrix of gates: one value per output of the last layer, per input of the first."""
        if len(gate) == 1:
            return gate.expand_as(matrix)
        return (gate[None, :] if index == count - 1 else gate[:, None]).expand_as(matrix)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, {}) for name in VARIANTS), ("titans", {"depth": 1, "num_layers": 2, "num_heads": 1})],
)
def test_steps_are_those_of_the_equations(name, fields):
    torch.manual_seed(0)
    sizes = {"dim": 16, "num_heads": 2, "max_step": 0.1} | fields
    module: Any = memory.make(name, paper=True, **sizes).double()
    for layer in module.layers:
        for parameter in layer.memory.gates.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if name != "titans":
            layer.memory.norm_scale.add_(0.3 * torch.randn_like(layer.memory.norm_scale))
            layer.memory.norm_shift.add_(0.3 * torch.randn_like(layer.memory.norm_shift))
    beside_oracles(
        module, lambda: Episode(module), time=40, cuts=[3, 17, 18], start_rate=0.06, tolerance=1e-8
    )


def test_the_fields_that_the_equations_need_are_named():
    for fields in ({"chunk_size": 4}, {"bound_steps": True}):
        with pytest.raises(ValueError, match=r"needs chunk_size=1 and bound_steps=False"):
            memory.make("titans", paper=True, **fields)
    with pytest.raises(ValueError, match="follow_paper with depth=3: must be at most 2"):
        memory.make("moneta", paper=True, depth=3)
    with pytest.raises(ValueError, match="needs measure='coordinate'"):
        memory.make("yaad", paper=True, measure="norm")
    with pytest.raises(ValueError, match="max_gate_rank=0: must be at least 1"):
        memory.make("yaad", max_gate_rank=0)
    with pytest.raises(ValueError, match=r"follow_paper: in the paper, .* \(law 3\)"):
        memory.make("titans_mac", follow_paper=True, chunk_size=1, bound_steps=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["titans", "memora", "moneta"])
def test_a_memory_without_news_forgets(name):
    """Weights decay to zero, and those of Memora to equal weights; Moneta's keep a norm of 1e-3."""
    torch.manual_seed(0)
    module: Any = memory.make(name, paper=True, dim=8, num_heads=1)
    rule = module.layers[0].memory
    linear = rule.gates if name == "titans" else rule.gates[1]
    linear.weight.zero_()
    linear.bias.fill_(-50)  # steps of size zero
    linear.bias.view(len(rule.gate_names), -1)[rule.gate_names.index("forgetting")] = 0
    _, state = module(torch.randn(1, 60, 8), module.initial_state(1))
    first = rule._unpack(state["weights_0"])[0]
    if name == "moneta":
        norm = torch.linalg.vector_norm(first, 4)
        torch.testing.assert_close(norm, torch.tensor(1e-3))
        return
    expected = torch.full_like(first, 8**0.5 / 8).log() if name == "memora" else torch.zeros_like(first)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6)
