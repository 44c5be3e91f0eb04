"""Segments of the recurrence of stable Hadamard memories, M_t = C_t * M_{t-1} + v_t k_t^T, read as M_t q_t.

Where many rows go through it at once, on a CPU, its gradient is by hand, time outermost and rows innermost:
then a step is one operation on numbers that lie together, and so is each row of an outer product. Everywhere
else it is `kernels.scan`, and single steps for rows whose entries come to their bound.

Letters: B batch, T time, S size of the matrix.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels import scan
from scrubjay.kernels.derivatives import by_graph, has_own_gradient, is_wanted_again
from scrubjay.kernels.dispatch import is_traced, without_autocast
from scrubjay.kernels.elementwise.steady import pass_over
from scrubjay.kernels.elementwise.walk import WIDE

BOUND = 100.0
"""How far entries of a memory's matrix may be from 0."""
_EPSILON = 1e-5


class Written(NamedTuple):
    """What inputs do to the matrix, and how they read it."""

    gate: Float[Tensor, "*batch S S"]
    value: Float[Tensor, "*batch S S"]
    query: Float[Tensor, "*batch S"]
    through: Float[Tensor, "*batch S"]

    @classmethod
    def of(cls, given: Float[Tensor, "*batch parts"], theta: Float[Tensor, "*batch S"]) -> Written:
        """Return what projections do: keys and queries, values, gates, what goes through, strengths."""
        both, value, gate, through, strength = given.split(_parts(theta.shape[-1]), dim=-1)
        both = both.unflatten(-1, (2, -1)).relu()
        key, query = (both / (_EPSILON + both.sum(-1, keepdim=True))).unbind(-2)
        # 1 + tanh(a) = 2 σ(2 a), which is quicker.
        gate = 2 * torch.sigmoid((2 * theta)[..., :, None] * gate[..., None, :])
        value = (strength.sigmoid() * value)[..., :, None] * key[..., None, :]
        return cls(gate, value, query, through)

    def read(self, matrix: Float[Tensor, "*batch S S"]) -> Float[Tensor, "*batch S"]:
        """Return what is read of the matrices after these inputs."""
        # Products of many small matrices with a vector each are slower.
        return (matrix * self.query[..., None, :]).sum(-1) + self.through


def segment(
    given: Float[Tensor, "B T parts"],
    theta: Float[Tensor, "B T S"],
    matrix: Float[Tensor, "B S S"],
    start: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T S"], Float[Tensor, "B S S"]]:
    """Return what is read after every step, and the last matrix."""
    if has_own_gradient(given, theta, matrix) and matrix.numel() >= WIDE:
        with torch.no_grad():
            walked = _Walked.of(given, theta, matrix, start)
        if walked is not None:
            return _Segment.apply(walked, start, given, theta, matrix)  # pyright: ignore[reportReturnType]
    return _by_scan(given, theta, matrix, start)


def _by_scan(given: Tensor, theta: Tensor, matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    written = Written.of(given, theta)
    matrices = bounded_scan(written.gate, written.value, matrix, start)
    # A copy: a view would keep the whole segment alive.
    return written.read(matrices), matrices[:, -1].clone()


def _parts(size: int) -> list[int]:
    return [2 * size, size, size, size, 1]


class _Walked(NamedTuple):
    """All that the gradient by hand wants of the way there, and the way's end."""

    gate: Float[Tensor, "T S S B"]
    """Half of every gate, 0 where an episode begins."""
    matrix: Float[Tensor, "T S S B"]
    value: Float[Tensor, "T S B"]
    strength: Float[Tensor, "T 1 B"]
    theta: Float[Tensor, "T S B"]
    along: Float[Tensor, "T S B"]
    """By which rows of the table are multiplied in the gates."""
    total: Float[Tensor, "T 2 1 B"]
    both: Float[Tensor, "T 2 S B"]
    """Keys and queries."""
    out: Float[Tensor, "T S B"]

    @classmethod
    def of(cls, given: Tensor, theta: Tensor, matrix: Tensor, start: Tensor) -> _Walked | None:
        """Return it, or None where an entry comes to its bound, or to no number."""
        given, theta = (x.permute(1, 2, 0).contiguous() for x in (given, theta))
        both, value, along, through, strength = given.split(_parts(theta.shape[1]), dim=1)
        both = both.unflatten(1, (2, -1)).relu()
        total = both.sum(2, keepdim=True).add_(_EPSILON)
        both = both.div_(total)
        key, query = both.unbind(1)
        strength = strength.sigmoid()
        value = value * strength
        gate = torch.mul(2 * theta[:, :, None], along[:, None]).sigmoid_()
        row, time = start.nonzero().unbind(1)
        gate.permute(0, 3, 1, 2)[time, row] = 0
        matrices = torch.mul(value[:, :, None], key[:, None])
        pass_over(gate.unbind(), matrices.unbind(), matrix.permute(1, 2, 0), scale=2)
        if not all(bool((_largest(x) < BOUND).all()) for x in (matrix, matrices)):
            return None
        out = torch.mul(matrices, query[:, None]).sum(2).add_(through)
        return cls(gate, matrices, value, strength, theta, along, total, both, out)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, walked: _Walked, start: Tensor, given: Tensor, theta: Tensor, matrix: Tensor):
        ctx.walked, ctx.start = walked, start
        ctx.save_for_backward(given, theta, matrix)
        out, last = (x.permute(2, 0, 1) for x in (walked.out, walked.matrix[-1]))
        return out.contiguous(), last.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @without_autocast
    def backward(ctx, grad, grad_last):
        given, theta, matrix = ctx.saved_tensors
        if not is_wanted_again(grad, grad_last):
            grads = _pull_back(ctx.walked, given, matrix, grad, grad_last)
            if all(bool(torch.isfinite(x.sum())) for x in grads):
                return None, None, *grads
        # Gradients that have gradients; and in a product of gates there may be numbers that nothing owes.
        run = functools.partial(_by_scan, start=ctx.start)
        return None, None, *by_graph(run, (given, theta, matrix), grad, grad_last)


def _pull_back(
    walked: _Walked, given: Tensor, matrix: Tensor, grad: Tensor, grad_last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of projections, of rows of the table and of the matrix before."""
    gate, matrices, value, strength, theta, along, total, both, _ = walked
    size = theta.shape[1]
    key, query = both.unbind(1)
    grad = grad.permute(1, 2, 0).contiguous()
    of_matrices = torch.mul(grad[:, :, None], query[:, None])
    of_matrices[-1] += grad_last.permute(1, 2, 0)
    steps = of_matrices.unbind()
    pass_over(gate.unbind()[:0:-1], steps[-2::-1], steps[-1], scale=2)
    of_matrix = 2 * gate[0] * of_matrices[0]

    found = given.new_empty(given.shape[1], given.shape[2], given.shape[0])
    of_both, of_value, of_along, of_through, of_strength = found.split(_parts(size), dim=1)
    of_both = of_both.unflatten(1, (2, size))
    space = torch.empty_like(gate)  # written to again and again: new memory costs as much as what fills it

    def summed(matrices: Tensor, vector: Tensor, dim: int, out: Tensor) -> Tensor:
        return torch.sum(torch.mul(matrices, vector.unsqueeze(3 - dim), out=space), dim, out=out)

    summed(of_matrices, value, 1, of_both[:, 0])
    summed(matrices, grad, 1, of_both[:, 1])
    of_both.sub_((of_both * both).sum(2, keepdim=True)).div_(total).mul_(both > 0)
    of_written = summed(of_matrices, key, 2, of_value)
    torch.mul((of_written * value).sum(1, keepdim=True), 1 - strength, out=of_strength)
    of_value.mul_(strength)
    of_through.copy_(grad)

    of_gate = of_matrices
    torch.mul(of_matrices[1:], matrices[:-1], out=of_gate[1:])
    torch.mul(of_matrices[0], matrix.permute(1, 2, 0), out=of_gate[0])
    torch.ops.aten.sigmoid_backward.grad_input(of_gate, gate, grad_input=of_gate)
    # Gates are 2 σ(2 a).
    summed(of_gate, theta, 1, of_along).mul_(4)
    of_theta = summed(of_gate, along, 2, torch.empty_like(theta)).mul_(4)
    return found.permute(2, 0, 1), of_theta.permute(2, 0, 1), of_matrix.permute(2, 0, 1)


def bounded_scan(
    gate: Float[Tensor, "batch time size size"],
    value: Float[Tensor, "batch time size size"],
    matrix: Float[Tensor, "batch size size"],
    start: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time size size"]:
    """Return the matrices after every step, whose entries stop at the bound.

    Rows of which none comes there are scanned, the others go step by step, as all do where nothing can be
    looked at.
    """
    if is_traced() or torch._C._are_functorch_transforms_active():
        return _step_by_step(gate, value, matrix, start)
    given = gate, value, matrix, start
    over = _largest(matrix) >= BOUND
    while True:
        free = [x[~over] for x in given] if over.any() else given
        matrices, _ = scan(*free[:3], start=free[3])
        beyond = ~(_largest(matrices) <= BOUND)
        if not beyond.any():
            break
        # Scanned anew without the rows that may have left all numbers, whose gradients would be none.
        over = over.masked_scatter(~over, beyond)
    if not over.any():
        return matrices
    held = _step_by_step(*(x[over] for x in given))
    order = torch.cat([(~over).nonzero()[:, 0], over.nonzero()[:, 0]]).argsort()
    return torch.cat([matrices, held])[order]


def _largest(numbers: Tensor) -> Float[Tensor, " rows"]:
    rows = numbers.detach().flatten(1)
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # a vector's norm takes five times as long


def _step_by_step(gate: Tensor, value: Tensor, matrix: Tensor, start: Tensor) -> Tensor:
    matrices = []
    for now, written, begins in zip(gate.unbind(1), value.unbind(1), start.unbind(1), strict=True):
        kept = torch.where(begins[:, None, None], 0, matrix)
        matrix = torch.addcmul(written, now, kept).clamp(-BOUND, BOUND)
        matrices.append(matrix)
    return torch.stack(matrices, dim=1)
