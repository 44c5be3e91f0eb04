"""Stable Hadamard memory: a matrix whose entries each have their own multiplicative gate.

Le et al. 2024 (arXiv 2410.10132, sections 3 and 4). The memory of step t is the matrix M_t, with gates C_t
and output y. x is the normed input. The key k, the query q and the value v are linear functions of x; k and q
are rectified, and each is divided by the sum of its coordinates. theta_t is a row of a learned table with L
rows. V, e, U and W are weights:

    M_t = C_t * M_{t-1} + (s v) k^T,    C_t = 1 + tanh(theta_t (V x)^T),   s = σ(e x),   y = W (M_t q + U x)

The gates are 1 on average. Products of gates over steps are also 1 on average, if theta_t is sampled
independently at every step. The memory is called stable for this reason.

Differences from the published code: step n of an episode uses row n mod L of the table. Two of the published
files always use row 0, because they draw a number between 0 and 1 and round it down. A third file draws a row
at random in every call, so a repeated step gives another result.

Entries of M are clamped to [-100, 100], as in one of the published files. Products of gates are bounded only
on average. Without the clamp, a constant observation makes entries overflow float32 within a few thousand
steps. An entry at the bound stays at the bound until its gates decay it, and earlier writes to the entry are
lost. Batch rows without an entry at the bound follow the equation and use `kernels.scan`.

Segments of large batches on a CPU use a custom backward pass. Its tensors have time as the first axis and
batch rows as the last axis, so that each step is one operation on contiguous memory. All other inputs use
`kernels.scan`. Batch rows whose entries reach the bound are computed step by step.

Letters: B batch, T time, S size of the matrix.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels import scan
from scrubjay.kernels.derivatives import differentiate_graph, run_custom, supports_custom_backward
from scrubjay.kernels.dispatch import is_traced
from scrubjay.kernels.elementwise.vectorized import WIDE, scan_in_place
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock

BOUND = 100.0
"""Largest absolute value of the matrix entries."""
_EPSILON = 1e-5


@dataclass(frozen=True)
class SHMConfig(MemoryConfig):
    """Configuration of `SHM`. Raises ValueError on an invalid size."""

    paper_values = "the paper draws rows of the table at random, so a repeated step differs (law 1)"

    memory_size: int = 16
    """Size of the square matrix: number of its rows and of its columns."""
    table_size: int = 128
    """Number of rows in the table of gate parameters. Step n of an episode uses row n modulo `table_size`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("memory_size", "table_size")

    def build(self) -> SHM:
        """Return a newly initialized memory."""
        return SHM(self)


class SHM(Memory):
    """One layer of stable Hadamard memory.

    State: `matrix` `[batch, size, size]` has an axis for values, then an axis for keys. `time` `[batch]` is
    the number of steps in the episode.
    """

    def __init__(self, config: SHMConfig) -> None:
        super().__init__(config)
        self.size, self.table_size = config.memory_size, config.table_size
        self.norm = nn.LayerNorm(self.dim)
        self.project = nn.Linear(self.dim, 5 * self.size + 1, bias=False)
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.table_size, self.size)))
        self.out = nn.Linear(self.size, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return a zero matrix and step count 0 for every row."""
        shape = (batch_size, self.size, self.size)
        return {
            "matrix": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "time": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row."""
        update = HadamardUpdate.from_projections(*self._write(x, state["time"]))
        matrix = torch.addcmul(update.value, update.gate, state["matrix"]).clamp(-BOUND, BOUND)
        return self._out(x, update.read(matrix)), {"matrix": matrix, "time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row."""
        clock = Clock.from_starts(state["time"], start)
        read, matrix = scan_segment(*self._write(x, clock.step), state["matrix"], start)
        return self._out(x, read), {"matrix": matrix, "time": clock.age_after}

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
        """Return the projected inputs, and the gate parameters that the table holds for each step."""
        dtype = self.state_dtype
        return self.project(self.norm(x)).to(dtype), self.table.to(dtype)[time % self.table_size]

    def _out(self, x: Tensor, read: Float[Tensor, "*batch size"]) -> Tensor:
        return self.out(read.to(self.out.weight.dtype)).to(x.dtype)


class HadamardUpdate(NamedTuple):
    """Matrix update, query and skip connection for each input."""

    gate: Float[Tensor, "*batch S S"]
    value: Float[Tensor, "*batch S S"]
    query: Float[Tensor, "*batch S"]
    through: Float[Tensor, "*batch S"]

    @classmethod
    def from_projections(
        cls, projections: Float[Tensor, "*batch parts"], theta: Float[Tensor, "*batch S"]
    ) -> HadamardUpdate:
        """Return the updates for projected inputs.

        `projections` holds keys, queries, values, gate factors, skip connection and write strengths,
        concatenated. `theta` holds, for each step, its row in the table of gate parameters.
        """
        keys_queries, value, gate, through, strength = projections.split(_part_sizes(theta.shape[-1]), dim=-1)
        keys_queries = keys_queries.unflatten(-1, (2, -1)).relu()
        key, query = (keys_queries / (_EPSILON + keys_queries.sum(-1, keepdim=True))).unbind(-2)
        # 1 + tanh(a) = 2 σ(2 a), which is quicker.
        gate = 2 * torch.sigmoid((2 * theta)[..., :, None] * gate[..., None, :])
        value = (strength.sigmoid() * value)[..., :, None] * key[..., None, :]
        return cls(gate, value, query, through)

    def read(self, matrix: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch S"]:
        """Return the products of matrices and queries, plus the skip connections.

        `matrix` holds one memory matrix per query: the matrix after the update of the same step.
        """
        # Batched products of small matrices with one vector each are slower.
        return (matrix * self.query[..., None, :]).sum(-1) + self.through


def scan_segment(
    projections: Float[Tensor, "B T parts"],
    theta: Float[Tensor, "B T S"],
    matrix: Float[Tensor, "B S S"],
    start: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T S"], Float[Tensor, "B S S"]]:
    """Return the outputs of all steps and the matrix after the last step."""
    if supports_custom_backward(projections, theta, matrix) and matrix.numel() >= WIDE:
        with torch.no_grad():
            forward_pass = _ForwardPass.run(projections, theta, matrix, start)
        if forward_pass is not None:
            plain = functools.partial(_segment_by_scan, start=start)
            backward = functools.partial(_backward, plain)
            out, last = run_custom(plain, forward_pass.outputs, backward, projections, theta, matrix)
            return out, last
    return _segment_by_scan(projections, theta, matrix, start)


def _segment_by_scan(
    projections: Tensor, theta: Tensor, matrix: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    update = HadamardUpdate.from_projections(projections, theta)
    matrices = bounded_scan(update.gate, update.value, matrix, start)
    # A copy: a view would keep the whole segment alive.
    return update.read(matrices), matrices[:, -1].clone()


def _part_sizes(size: int) -> list[int]:
    return [2 * size, size, size, size, 1]


class _ForwardPass(NamedTuple):
    """Outputs of the forward pass, and values that it saves for the custom backward pass."""

    gate: Float[Tensor, "T S S B"]
    """Gates of the memory matrix, divided by 2; 0 at episode starts."""
    matrix: Float[Tensor, "T S S B"]
    value: Float[Tensor, "T S B"]
    strength: Float[Tensor, "T 1 B"]
    theta: Float[Tensor, "T S B"]
    gate_factors: Float[Tensor, "T S B"]
    """Projected inputs whose products with the gate parameters `theta` determine the gates."""
    total: Float[Tensor, "T 2 1 B"]
    keys_queries: Float[Tensor, "T 2 S B"]
    out: Float[Tensor, "T S B"]

    @classmethod
    def run(cls, projections: Tensor, theta: Tensor, matrix: Tensor, start: Tensor) -> _ForwardPass | None:
        """Run the forward pass. Return None if an entry of a matrix reaches the bound or is not finite."""
        projections, theta = (x.permute(1, 2, 0).contiguous() for x in (projections, theta))
        keys_queries, value, gate_factors, through, strength = projections.split(
            _part_sizes(theta.shape[1]), dim=1
        )
        keys_queries = keys_queries.unflatten(1, (2, -1)).relu()
        total = keys_queries.sum(2, keepdim=True).add_(_EPSILON)
        keys_queries = keys_queries.div_(total)
        key, query = keys_queries.unbind(1)
        strength = strength.sigmoid()
        value = value * strength
        gate = torch.mul(2 * theta[:, :, None], gate_factors[:, None]).sigmoid_()
        row, time = start.nonzero().unbind(1)
        gate.permute(0, 3, 1, 2)[time, row] = 0
        matrices = torch.mul(value[:, :, None], key[:, None])
        scan_in_place(gate.unbind(), matrices.unbind(), matrix.permute(1, 2, 0), scale=2)
        if not all(bool((_largest(x) < BOUND).all()) for x in (matrix, matrices)):
            return None
        out = torch.mul(matrices, query[:, None]).sum(2).add_(through)
        return cls(gate, matrices, value, strength, theta, gate_factors, total, keys_queries, out)

    def outputs(self, *_: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the outputs of all steps and the last matrix, batch first, and the tensors to save."""
        out, last = (x.permute(2, 0, 1) for x in (self.out, self.matrix[-1]))
        return [out.contiguous(), last.clone(memory_format=torch.contiguous_format)], self[:-1]


def _backward(plain, inputs, tensors, grads, _):
    """Return the gradients of the projections, of the gate parameters and of the initial matrix."""
    projections, _, matrix = inputs
    gate, matrices, value, strength, theta, gate_factors, total, keys_queries = tensors
    size = theta.shape[1]
    key, query = keys_queries.unbind(1)
    grad = torch.zeros_like(value) if grads[0] is None else grads[0].permute(1, 2, 0).contiguous()
    grad_matrices = torch.mul(grad[:, :, None], query[:, None])
    if grads[1] is not None:
        grad_matrices[-1] += grads[1].permute(1, 2, 0)
    steps = grad_matrices.unbind()
    scan_in_place(gate.unbind()[:0:-1], steps[-2::-1], steps[-1], scale=2)
    grad_matrix = 2 * gate[0] * grad_matrices[0]

    grad_projections = projections.new_empty(projections.shape[1], projections.shape[2], projections.shape[0])
    grad_keys_queries, grad_value, grad_gate_factors, grad_through, grad_strength = grad_projections.split(
        _part_sizes(size), dim=1
    )
    grad_keys_queries = grad_keys_queries.unflatten(1, (2, size))
    buffer = torch.empty_like(gate)  # reused buffer: allocating memory costs as much as filling it

    def sum_product(matrices: Tensor, vector: Tensor, dim: int, out: Tensor) -> Tensor:
        return torch.sum(torch.mul(matrices, vector.unsqueeze(3 - dim), out=buffer), dim, out=out)

    sum_product(grad_matrices, value, 1, grad_keys_queries[:, 0])
    sum_product(matrices, grad, 1, grad_keys_queries[:, 1])
    grad_keys_queries.sub_((grad_keys_queries * keys_queries).sum(2, keepdim=True)).div_(total).mul_(
        keys_queries > 0
    )
    grad_scaled_value = sum_product(grad_matrices, key, 2, grad_value)
    torch.mul((grad_scaled_value * value).sum(1, keepdim=True), 1 - strength, out=grad_strength)
    grad_value.mul_(strength)
    grad_through.copy_(grad)

    grad_gate = grad_matrices
    torch.mul(grad_matrices[1:], matrices[:-1], out=grad_gate[1:])
    torch.mul(grad_matrices[0], matrix.permute(1, 2, 0), out=grad_gate[0])
    torch.ops.aten.sigmoid_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    # Gates are 2 σ(2 a).
    sum_product(grad_gate, theta, 1, grad_gate_factors).mul_(4)
    grad_theta = sum_product(grad_gate, gate_factors, 2, torch.empty_like(theta)).mul_(4)
    results = [grad.permute(2, 0, 1) for grad in (grad_projections, grad_theta, grad_matrix)]
    if all(bool(torch.isfinite(x.sum())) for x in results):
        return results
    # A product of gates overflowed where its gradient is zero.
    return differentiate_graph(plain, inputs, *grads)


def bounded_scan(
    gate: Float[Tensor, "batch time size size"],
    value: Float[Tensor, "batch time size size"],
    matrix: Float[Tensor, "batch size size"],
    start: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time size size"]:
    """Return the matrices after every step. Entries are clamped to the range from -100 to 100.

    Batch rows whose entries stay inside the range use `kernels.scan`. All other rows run step by step. Under
    tracing and functorch transforms, all rows run step by step, because values cannot be inspected.
    """
    if is_traced() or torch._C._are_functorch_transforms_active():
        return _scan_steps(gate, value, matrix, start)
    inputs = gate, value, matrix, start
    over = _largest(matrix) >= BOUND
    while True:
        free = [x[~over] for x in inputs] if over.any() else inputs
        matrices, _ = scan(*free[:3], start=free[3])
        beyond = ~(_largest(matrices) <= BOUND)
        if not beyond.any():
            break
        # Scan again without the rows that may have overflowed, whose gradients would be NaN.
        over = over.masked_scatter(~over, beyond)
    if not over.any():
        return matrices
    clamped_matrices = _scan_steps(*(x[over] for x in inputs))
    order = torch.cat([(~over).nonzero()[:, 0], over.nonzero()[:, 0]]).argsort()
    return torch.cat([matrices, clamped_matrices])[order]


def _largest(numbers: Tensor) -> Float[Tensor, " rows"]:
    rows = numbers.detach().flatten(1)
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # an infinity norm takes five times as long


def _scan_steps(gate: Tensor, value: Tensor, matrix: Tensor, start: Tensor) -> Tensor:
    matrices = []
    for gate_t, value_t, start_t in zip(gate.unbind(1), value.unbind(1), start.unbind(1), strict=True):
        previous = torch.where(start_t[:, None, None], 0, matrix)
        matrix = torch.addcmul(value_t, gate_t, previous).clamp(-BOUND, BOUND)
        matrices.append(matrix)
    return torch.stack(matrices, dim=1)
