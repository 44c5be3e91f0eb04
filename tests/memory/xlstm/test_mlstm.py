"""mLSTM compared with its equations without a stabilizer, and its stabilizers."""

import torch
from torch.nn import functional

from scrubjay.memory.xlstm.mlstm import MLSTMBlock, find_stabilizers


def build(seed=0):
    """Return a block in float64 whose gates depend on the input."""
    torch.manual_seed(seed)
    block = MLSTMBlock(8, 2, 3, 0.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return block


def oracle(block, x):
    """Return a block's outputs of one episode by the equations with exp(i), without a stabilizer."""
    heads, taps = block.heads, block.convolution.weight
    width = block.inner // heads
    matrix, normalizer = torch.zeros(heads, width, width).double(), torch.zeros(heads, width).double()
    history, outputs = [], []
    for token in x:
        inputs, gate = block.project_in(block.norm(token)).chunk(2)
        history = [inputs, *history][: len(taps)]
        features = sum(tap * old for tap, old in zip(taps, history, strict=False)) + block.convolution_bias
        features = functional.silu(features)
        qkv = block.query(features), block.key(features), block.value(inputs)
        log_input, forget = block.gates(torch.cat(qkv)).chunk(2)
        q, k, v = (part.view(heads, width) for part in qkv)
        read = []
        for n in range(heads):
            f, i, key = torch.sigmoid(forget[n]), log_input[n].exp(), k[n] / width**0.5
            matrix[n], normalizer[n] = f * matrix[n] + i * torch.outer(key, v[n]), f * normalizer[n] + i * key
            read.append(matrix[n].T @ q[n] / (normalizer[n] @ q[n]).abs().clamp_min(1))
        y = (block.out_norm(torch.stack(read)) + block.skip * features) * functional.silu(gate)
        outputs.append(token + block.out(y))
    return torch.stack(outputs)


@torch.no_grad()
def test_outputs_are_those_of_the_paper():
    block = build()
    x, start = 2 * torch.randn(2, 40, 8).double(), torch.zeros(2, 40, dtype=torch.bool)
    start[0, 13] = start[1, 31] = True
    y, _ = block.segment(x, block.initial_state(2, torch.float64), start)
    for row, border in ((0, 13), (1, 31)):
        for part in (slice(0, border), slice(border, 40)):
            torch.testing.assert_close(y[row, part], oracle(block, x[row, part]), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_input_gates_may_be_huge():
    """exp(500) overflows in float32, but only quotients of gates matter."""
    block = build().float()
    block.gates.weight.zero_()
    results = []
    for log_input in (20.0, 500.0):
        block.gates.bias.copy_(torch.tensor([log_input, log_input, 2.0, 2.0]))
        x = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(0))
        start = torch.zeros(1, 30, dtype=torch.bool)
        results.append(block.segment(x, block.initial_state(1, torch.float32), start)[0])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_stabilizers_follow_their_recurrence():
    generator = torch.Generator().manual_seed(0)
    log_input, log_forget = (3 * torch.randn(3, 37, 2, generator=generator).double() for _ in range(2))
    log_forget = functional.logsigmoid(log_forget)
    before, start = torch.rand(3, 2).double(), torch.rand(3, 37, generator=generator) < 0.1
    log_input[0, 4], start[0, 5] = torch.nan, True
    result = find_stabilizers(log_forget, log_input, before, start)
    m = before
    for t in range(37):
        m = torch.where(start[:, t, None], 0, m)
        m = torch.maximum(log_forget[:, t] + m, log_input[:, t])
        torch.testing.assert_close(result[:, t], m, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert result[0, 5:].isfinite().all()
