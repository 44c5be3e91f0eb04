"""mLSTM: a matrix per head with an exponential input gate, a forget gate and a normalizer.

Beck et al. 2024 (arXiv 2405.04517, section 2.3 and appendix A.2). With the matrix C, the normalizer n, the
input gate i, the forget gate f, key k, value v and query q of a head,

    C_t = f_t C_{t-1} + exp(i_t) k_t v_t^T,    n_t = f_t n_{t-1} + exp(i_t) k_t,
    y_t = C_t^T q_t / max(|n_t . q_t|, 1).

f is a sigmoid. exp(i) can overflow, so C and n are stored as multiples of exp(m), with the stabilizer
m_t = max(log f_t + m_{t-1}, i_t). This is the rule "hebbian" of `kernels.linear_memory` with log decay
log f_t + m_{t-1} - m_t and strength exp(i_t - m_t), both at most 1 after exp. n is an additional column of C,
for a value of 1. y does not depend on m, so m has no gradient.

The block is that of figure 10: the input x is projected to two halves of width `2 dim`. Queries and keys come
from the first half after a convolution and SiLU, values from the first half itself, by linear maps per block
of four channels. y is normalized per head. The convolved inputs are added with a learned weight per channel.
The result is multiplied by SiLU of the second half and projected.

Input gates start near exp(-5). The published code starts near exp(0), as does `make("xlstm", paper=True)`.
C and n are sums over up to 400 steps, and q may be nearly orthogonal to them. Then C^T q is a small
difference of large terms. The norm per head scales it up, with its error and its gradient, unless it is small
in comparison with the epsilon of the norm. With exp(0), gradients in float32 have errors up to 4e-4. xLSTM 7B
(Beck et al. 2025, arXiv 2503.13427) starts at exp(-10) against large gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory
from scrubjay.memory.contract.base import State
from scrubjay.memory.linear.layers import LinearTokens
from scrubjay.memory.parts.layers import ShortConvolution
from scrubjay.memory.xlstm.parts import BlockLinear, HeadNorm

_EXPANSION = 2
_BLOCK = 4


class MLSTMBlock(nn.Module):
    """mLSTM block, pre-norm with a residual connection.

    State: `matrix` `[batch, heads, width, width + 1]` holds C and, in its last column, n. `stabilizer`
    `[batch, heads]` is m. `tail` `[batch, convolution - 1, 2 dim]` holds the last inputs of the convolution.

    Args:
        dim: Width of inputs and outputs.
        heads: Number of heads.
        convolution: Number of steps in the causal convolution.
        log_input_gate: Mean logarithm of the initial input gates.
    """

    def __init__(self, dim: int, heads: int, convolution: int, log_input_gate: float) -> None:
        super().__init__()
        inner = _EXPANSION * dim
        self.inner, self.heads = inner, heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.project_in = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = ShortConvolution(inner, convolution)
        self.convolution_bias = nn.Parameter(torch.zeros(inner))
        self.query, self.key, self.value = (BlockLinear(inner, inner // _BLOCK) for _ in range(3))
        self.gates = nn.Linear(3 * inner, 2 * heads)
        self.out_norm = HeadNorm(inner)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            # As in the published code: at first, gates do not depend on the input.
            self.gates.weight.zero_()
            self.gates.bias[:heads].normal_(log_input_gate, 0.1)
            self.gates.bias[heads:].copy_(torch.linspace(3, 6, heads))

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the block: zeros."""
        width, tail = self.inner // self.heads, self.convolution.initial_state(batch_size)
        matrix = torch.zeros(batch_size, self.heads, width, width + 1, dtype=dtype, device=tail.device)
        return {"matrix": matrix, "stabilizer": matrix[..., 0, 0].clone(), "tail": tail}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        start = torch.zeros_like(x[:, :1], dtype=torch.bool)
        y, after = self.segment(x[:, None], state, start)
        return y[:, 0], after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        inputs, gate = self.project_in(self.norm(x)).chunk(2, dim=-1)
        features, tail = self.convolution(inputs, state["tail"], start)
        features = functional.silu(features + self.convolution_bias)
        qkv = self.query(features), self.key(features), self.value(inputs)
        tokens, stabilizer = self._tokens(qkv, state["stabilizer"], start)
        y, matrix = linear_memory(*tokens, state["matrix"], rule="hebbian", start=start)
        y = y[..., :-1] / torch.maximum(y[..., -1:].abs(), (-stabilizer).exp()[..., None])
        y = (self.out_norm(y) + self.skip * features) * functional.silu(gate)
        last = stabilizer[:, -1].clone()
        return x + self.out(y), {"matrix": matrix, "stabilizer": last, "tail": tail}

    def _tokens(
        self, qkv: tuple[Tensor, Tensor, Tensor], before: Tensor, start: Tensor
    ) -> tuple[LinearTokens, Float[Tensor, "batch time heads"]]:
        """Return the kernel inputs and the stabilizers, given the stabilizer before the first step."""
        dtype = before.dtype
        log_input, log_forget = self.gates(torch.cat(qkv, dim=-1)).to(dtype).chunk(2, dim=-1)
        log_forget = functional.logsigmoid(log_forget)
        stabilizer = find_stabilizers(log_forget, log_input, before, start)
        previous = torch.cat([before[:, None], stabilizer[:, :-1]], dim=1).masked_fill(start[..., None], 0)
        query, key, value = (part.to(dtype).unflatten(-1, (self.heads, -1)) for part in qkv)
        tokens = LinearTokens(
            query,
            key * key.shape[-1] ** -0.5,
            torch.cat([value, torch.ones_like(value[..., :1])], dim=-1),
            log_forget + (previous - stabilizer),
            (log_input - stabilizer).exp(),
        )
        return tokens, stabilizer


@torch.no_grad()
def find_stabilizers(
    log_forget: Float[Tensor, "batch time heads"],
    log_input: Float[Tensor, "batch time heads"],
    before: Float[Tensor, "batch heads"],
    start: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time heads"]:
    """Return m_t = max(log_forget_t + m_{t-1}, log_input_t) for all steps, where m is 0 before an episode.

    Doubles the number of steps that each maximum covers, so it takes log2(time) rounds.
    """
    begins = start[..., None].expand_as(log_input)
    total, result = log_forget, torch.maximum(log_input, log_forget)
    result = torch.where(begins, result, log_input)
    first = torch.maximum(result[:, 0], log_forget[:, 0] + before)
    result = torch.cat([torch.where(begins[:, 0], result[:, 0], first)[:, None], result[:, 1:]], dim=1)
    reach = 1
    while reach < result.shape[1]:
        other = torch.maximum(result[:, reach:], total[:, reach:] + result[:, :-reach])
        later = torch.where(begins[:, reach:], result[:, reach:], other)
        result = torch.cat([result[:, :reach], later], dim=1)
        total = torch.cat([total[:, :reach], total[:, reach:] + total[:, :-reach]], dim=1)
        begins = torch.cat([begins[:, :reach], begins[:, reach:] | begins[:, :-reach]], dim=1)
        reach *= 2
    return result
