"""sLSTM: an LSTM cell with exponential gates, a normalizer and recurrent weights inside heads.

Beck et al. 2024 (arXiv 2405.04517, section 2.2 and appendix A.1). With the input gate i, the forget gate f,
the candidate z and the output gate o of a channel, which are linear functions of the input and of y_{t-1},

    c_t = sigmoid(f_t) c_{t-1} + exp(i_t) tanh(z_t),    n_t = sigmoid(f_t) n_{t-1} + exp(i_t),
    y_t = sigmoid(o_t) c_t / n_t.

exp(i) can overflow. The paper stores c and n as multiples of exp(m) for a stabilizer m. This module stores
the quotient h = c / n and the logarithm s = log n, which are independent of m:

    u_t = i_t - log sigmoid(f_t) - s_{t-1},    s_t = i_t + softplus(-u_t),
    h_t = h_{t-1} + sigmoid(u_t) (tanh(z_t) - h_{t-1}),    y_t = sigmoid(o_t) h_t.

The block is that of figure 9: i and f see the input after a convolution and SiLU, z and o the input itself,
by linear maps per head. y is normalized per head. A gated feed-forward block follows.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.layers import ShortConvolution
from scrubjay.memory.xlstm.cells import EMPTY, run_cells, run_step
from scrubjay.memory.xlstm.parts import HeadNorm

_STATE = ("hidden", "cell", "log_norm")


class SLSTMBlock(nn.Module):
    """sLSTM block and a gated feed-forward block, both pre-norm with a residual connection.

    State: `hidden` `[batch, dim]` is y, `cell` `[batch, dim]` is h, and `log_norm` `[batch, dim]` is s.
    `tail` `[batch, convolution - 1, dim]` holds the last inputs of the convolution.

    Args:
        dim: Width of inputs and outputs.
        heads: Number of heads.
        convolution: Number of steps in the causal convolution.
        hidden: Hidden width of the feed-forward block.
    """

    def __init__(self, dim: int, heads: int, convolution: int, hidden: int) -> None:
        super().__init__()
        self.heads, width = heads, dim // heads
        self.norm = nn.LayerNorm(dim, bias=False)
        self.convolution = ShortConvolution(dim, convolution)
        self.convolution_bias = nn.Parameter(torch.zeros(dim))
        # Weights of f, i, z and o, from the inputs of a head and from its hidden vector.
        self.weight = nn.Parameter(torch.randn(heads, 4, width, width) * width**-0.5)
        self.recurrent = nn.Parameter(torch.zeros(heads, 4, width, width))
        self.bias = nn.Parameter(torch.zeros(heads, 4, width))
        self.out_norm = HeadNorm(dim)
        self.feed_norm = nn.LayerNorm(dim, bias=False)
        self.feed_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.feed_out = nn.Linear(hidden, dim, bias=False)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            # As in the published code: forget gates from sigmoid(5) down to sigmoid(-7) in each head.
            self.bias[:, 0] = 5 - 12 * (torch.arange(width) / max(1, width - 1)) ** 0.3

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the block: zeros, and the logarithm of an empty normalizer."""
        tail = self.convolution.initial_state(batch_size)
        hidden = torch.zeros(batch_size, tail.shape[-1], dtype=dtype, device=tail.device)
        return {"hidden": hidden, "cell": hidden.clone(), "log_norm": hidden + EMPTY, "tail": tail}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        h = self.norm(x)
        features, tail = self.convolution(h[:, None], state["tail"])
        features = functional.silu(features[:, 0] + self.convolution_bias)
        after = run_step(*self._cell_arguments(features, h, state))
        return self._finish(x, after[0]), dict(zip(_STATE, after, strict=True)) | {"tail": tail}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        h = self.norm(x)
        features, tail = self.convolution(h, state["tail"], start)
        features = functional.silu(features + self.convolution_bias)
        hidden, *last = run_cells(start, *self._cell_arguments(features, h, state))
        # Copies: a view would keep the whole segment in memory and be serialized with it.
        copies = (x.clone(memory_format=torch.contiguous_format) for x in (hidden[:, -1], *last))
        return self._finish(x, hidden), dict(zip(_STATE, copies, strict=True)) | {"tail": tail}

    def _cell_arguments(self, features: Tensor, h: Tensor, state: State) -> list[Tensor]:
        """Return the arguments of `run_cells` and `run_step`, in the dtype of the state."""
        arguments = (features, h, *(state[name] for name in _STATE), self.weight, self.recurrent, self.bias)
        return [value.to(state["hidden"].dtype) for value in arguments]

    def _finish(
        self, x: Float[Tensor, "batch *time dim"], hidden: Float[Tensor, "batch *time dim"]
    ) -> Float[Tensor, "batch *time dim"]:
        """Return the outputs of the block for its inputs and hidden vectors."""
        x = x + self.out_norm(hidden.unflatten(-1, (self.heads, -1))).to(x.dtype)
        gate, value = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        return x + self.feed_out(functional.gelu(gate) * value)
