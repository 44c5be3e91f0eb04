"""The laws themselves, a function each, on a `Trial`."""

from __future__ import annotations

import gc
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import torch as safetensors
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, State, detach_state
from scrubjay.memory.contract.trial import BATCH, MemoryLawError, Trial, compare

_LONG_STEPS = 1_000_000
_SHIFT = 1e-9
"""Far less than float32 tells apart, far more than float64 does."""
_KINDS = ("drawn", "constant", "zero", "alternating")
# What lies before a start: what harms at once, and what is finite until it is multiplied.
_POISONS = (float("nan"), float("inf"), 1e20, 1e30)


def step_is_sequence(trial: Trial) -> None:
    """Law 1: any cut of a sequence gives the same outputs, final state and gradients, as do steppers.

    Of a memory with a clock, from an age of more than a million steps, too; not under autocast if it chooses
    what it reads.
    """
    _cut_alike(trial, trial.lived_in())
    # Which of two chunks nearly alike is chosen, roundings to bfloat16 decide: one more draw of it tells
    # nothing of clocks.
    chooses = trial.autocast and getattr(trial.memory, "retrieves", False)
    aged = None if chooses else trial.aged()
    if aged is not None:
        _cut_alike(trial, aged, " from an age of a million steps")


def _cut_alike(trial: Trial, state: State, whence: str = "", x: Tensor | None = None) -> None:
    """Compare cuts of a sequence, by default a drawn one, that goes on from `state`."""
    x = trial.draw() if x is None else x
    start = trial.draw_starts(len(x))
    whole = _gradients(trial, x, state, start, cuts=[])
    middle = sorted({1, trial.steps // 3, trial.steps // 3 + 1, trial.steps - 2})
    for name, cuts in (("one step at a time", list(range(1, trial.steps))), (f"cut at {middle}", middle)):
        pieces = _gradients(trial, x, state, start, cuts)
        for what in whole:
            compare(
                1, f"{what}, {name} against all at once{whence}", pieces[what], whole[what], trial.tolerance
            )
    if isinstance(trial.memory, Memory):
        given = {name: value.clone() for name, value in state.items()}
        for what, found in _stepped(trial, x, state, start).items():
            how = f"of a stepper against all at once{whence}"
            compare(1, f"{what}, {how}", found, whole[what], trial.tolerance)
        for name, value in state.items():
            compare(1, f"state {name!r} that a stepper was made of", value, given[name], 0.0)


def _stepped(trial: Trial, x: Tensor, state: State, start: Tensor) -> dict[str, Tensor]:
    """Return outputs and final state of the memory's steppers, of which the second goes on from the first."""
    outputs = []
    for steps in (range(trial.steps // 3), range(trial.steps // 3, trial.steps)):
        with trial.casting():
            stepper = trial.memory.stepper(state)
            outputs += [stepper.step(x[:, t], start[:, t]) for t in steps]
        state = stepper.state()
    return {"output": torch.stack(outputs, dim=1)} | {f"state {n!r}": value for n, value in state.items()}


def _gradients(
    trial: Trial, x: Tensor, state: State, start: Tensor, cuts: Sequence[int]
) -> dict[str, Tensor]:
    """Return outputs, final state and the gradients of a fixed functional of both."""
    x = x.clone().requires_grad_()
    trial.memory.zero_grad()
    y, after = trial.run(x, state, start, cuts)
    found = {"output": y.detach()} | {f"state {name!r}": value.detach() for name, value in after.items()}
    loss = _functional(y) + sum(_functional(value) for value in after.values() if value.requires_grad)
    _backward(loss)
    found["gradient of x"] = _gradient(x)
    for name, parameter in trial.memory.named_parameters():
        found[f"gradient of parameter {name}"] = _gradient(parameter)
    return found


def _backward(loss: Tensor) -> None:
    """Send gradients back; where all were cut off none arrive, which law 9 says better than torch."""
    if loss.requires_grad:
        loss.backward()


def _gradient(value: Tensor) -> Tensor:
    """Return a copy of the gradient that arrived, zeros if none did."""
    return torch.zeros_like(value) if value.grad is None else value.grad.clone()


def _functional(value: Tensor) -> Tensor:
    """A fixed linear functional of unit scale, so that gradients stay comparable across sizes."""
    weights = torch.cos(torch.arange(value.numel(), device=value.device, dtype=torch.float64)).to(value.dtype)
    return (value * weights.view_as(value)).sum() / max(1, value.numel()) ** 0.5


class _Birth(NamedTuple):
    """What a row gives from step `t` on if nothing came before, and what gradients x and parameters get."""

    t: int
    output: Tensor
    state: State
    gradient: Tensor


def _births(trial: Trial, x: Tensor, born: Sequence[int]) -> tuple[list[_Birth], dict[str, Tensor]]:
    """Return the lives of rows born at steps `born` of `x`, and what gradients parameters get from all."""
    lives = []
    trial.memory.zero_grad()
    for row, t in enumerate(born):
        fresh = x[row : row + 1, t:].clone().requires_grad_()
        output, after = trial.memory(fresh, trial.memory.initial_state(1))
        _backward(_functional(output[0]))
        lives.append(_Birth(t, output.detach(), detach_state(after), _gradient(fresh)))
    return lives, {n: p.grad.clone() for n, p in trial.memory.named_parameters() if p.grad is not None}


def start_is_birth(trial: Trial) -> None:
    """Law 2: what follows a start is the life of a row born there, whatever came before."""
    born = [0, trial.steps // 2, trial.steps - 1]
    clean, lived_in = trial.draw(), trial.lived_in()
    start = torch.zeros(BATCH, trial.steps, dtype=torch.bool, device=trial.device)
    for row, t in enumerate(born):
        start[row, t] = True
    start[2, trial.steps // 3] = True
    # What comes before may not matter, so that one expectation serves all that is put there.
    expected = _births(trial, clean, born)
    # All poisons are tried at once, each in rows of its own: rows are strangers, by law 4.
    for poisons in ((None,), _POISONS):
        x = clean.repeat(len(poisons), 1, 1)
        state = {n: torch.cat([v] * len(poisons)) for n, v in lived_in.items()}
        for index, poison in enumerate(poisons):
            if poison is None:
                continue
            for row, t in enumerate(born, start=index * BATCH):
                x[row, :t] = poison
            for value in state.values():
                if value.is_floating_point():
                    value[index * BATCH : (index + 1) * BATCH] = poison
        starts = start.repeat(len(poisons), 1)
        for name, cuts in (("in one segment", []), ("step by step", list(range(1, trial.steps)))):
            how = [f"with {'finite values' if p is None else p} before it, {name}" for p in poisons]
            _compare_births(trial, x, state, starts, expected, cuts, how, poisons == (None,))


def _compare_births(
    trial: Trial,
    x: Tensor,
    state: State,
    start: Tensor,
    expected: tuple[list[_Birth], dict[str, Tensor]],
    cuts: list[int],
    how: list[str],
    finite: bool,
) -> None:
    """Compare rows with the lives that they should have, which are as many for every word in `how`."""
    lives, expected_parameters = expected
    # Without cuts gradients are those of the parallel path; step by step only values are promised under NaN.
    differentiable = finite or not cuts
    x = x.clone().requires_grad_()
    state = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in state.items()}
    trial.memory.zero_grad()
    rows = [(told, life) for told in how for life in lives]
    with torch.set_grad_enabled(differentiable):
        y, after = trial.run(x, state, start, cuts)
    if differentiable:
        _backward(torch.stack([_functional(y[row, life.t :]) for row, (_, life) in enumerate(rows)]).sum())
    for row, (told, (t, output, after_birth, gradient)) in enumerate(rows):
        compare(2, f"output after a start {told}", y[row : row + 1, t:], output, trial.tolerance, offset=t)
        for name, value in after_birth.items():
            what = f"state {name!r} after a start {told}"
            compare(2, what, after[name][row : row + 1], value, trial.tolerance)
        if not differentiable:
            continue
        reached = _gradient(x)[row : row + 1]
        what = f"gradient of x after a start {told}"
        compare(2, what, reached[:, t:], gradient, trial.tolerance, offset=t)
        if finite:
            before = reached[:, :t]
            compare(2, f"gradient of x before a start {told}", before, torch.zeros_like(before), 0.0)
    # Backwards through what was poisoned, `where` itself gives 0 * NaN; nobody needs those gradients.
    if finite:
        for name, value in state.items():
            if value.grad is not None:
                what = f"gradient of the old state {name!r} {how[0]}"
                compare(2, what, value.grad, torch.zeros_like(value), 0.0)
        found = dict(trial.memory.named_parameters())
        for name, value in expected_parameters.items():
            what = f"gradient of parameter {name} {how[0]}"
            compare(2, what, _gradient(found[name]), value, trial.tolerance)


def causal(trial: Trial) -> None:
    """Law 3: other later inputs, NaN too, leave earlier outputs as they were."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.lived_in()
    with torch.no_grad():
        y, _ = trial.memory(x, state, start)
        for t in {trial.steps // 4, trial.steps // 2, trial.steps - 2}:
            for name, later in (("other values", trial.draw()), ("NaN", torch.full_like(x, float("nan")))):
                changed = torch.cat([x[:, : t + 1], later[:, t + 1 :]], dim=1)
                earlier, _ = trial.memory(changed, state, start)
                what = f"output up to step {t} when later inputs become {name}"
                compare(3, what, earlier[:, : t + 1], y[:, : t + 1], trial.row_tolerance)


def rows_are_strangers(trial: Trial) -> None:
    """Law 4: rows may be permuted, added, removed or poisoned; the others do not notice."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.lived_in()
    orders = {
        "rows permuted": [2, 0, 1],
        "a row removed": [0, 2],
        "one row alone": [1],
        "rows added": [0, 1, 2, 1, 0],
    }
    with torch.no_grad():
        for path, length in (("segment", trial.steps), ("step", 1)):
            y, after = trial.memory(x[:, :length], state, start[:, :length])
            for name, order in orders.items():
                rows = torch.tensor(order, device=trial.device)
                again = {n: v[rows] for n, v in state.items()}
                y_rows, after_rows = trial.memory(x[rows, :length], again, start[rows, :length])
                compare(4, f"output of a {path} with {name}", y_rows, y[rows], trial.row_tolerance)
                for key, value in after_rows.items():
                    what = f"state {key!r} of a {path} with {name}"
                    compare(4, what, value, after[key][rows], trial.row_tolerance)
            for name, poison in (("NaN", float("nan")), ("1e20", 1e20)):
                poisoned = x[:, :length].clone()
                poisoned[0] = poison
                harmed = {n: v.clone() for n, v in state.items()}
                for value in harmed.values():
                    if value.is_floating_point():
                        value[0] = poison
                for what, given in (("row", (poisoned, state)), ("state", (x[:, :length], harmed))):
                    beside, _ = trial.memory(*given, start[:, :length])
                    what = f"output of a {path} beside a {what} of {name}"
                    compare(4, what, beside[1:], y[1:], trial.row_tolerance)


def fixed_shape(trial: Trial) -> None:
    """Law 5: shapes, dtypes and bytes of the state are those it was born with."""
    for batch in (1, 4):
        state = trial.memory.initial_state(batch)
        born = {n: (v.shape, v.dtype) for n, v in state.items()}
        for name, value in state.items():
            if value.shape[:1] != (batch,):
                raise MemoryLawError(
                    5, f"state {name!r} has shape {tuple(value.shape)}, not batch first ({batch})"
                )
        if hasattr(trial.memory, "state_bytes"):
            exact = sum(v.numel() * v.element_size() for v in state.values())
            stated = trial.memory.state_bytes(batch)
            if stated != exact:
                raise MemoryLawError(5, f"state_bytes({batch}) says {stated}, the state has {exact} bytes")
        with torch.no_grad():
            for step, time in enumerate((1, 1, 2, trial.steps)):
                y, state = trial.memory(trial.draw(batch, time), state)
                if y.dtype != trial.dtype:
                    raise MemoryLawError(5, f"output has dtype {y.dtype} for inputs of {trial.dtype}")
                if y.shape != (batch, time, trial.dim):
                    raise MemoryLawError(
                        5, f"output has shape {tuple(y.shape)}, not {(batch, time, trial.dim)}"
                    )
                for name, value in state.items():
                    held = value.untyped_storage().nbytes()
                    if not value.is_contiguous() or held != value.numel() * value.element_size():
                        raise MemoryLawError(5, f"state {name!r} is a view that keeps {held} bytes alive")
                now = {n: (v.shape, v.dtype) for n, v in state.items()}
                if now != born:
                    raise MemoryLawError(
                        5, f"after call {step} of {time} steps the state went from {born} to {now}"
                    )
    if trial.dtype == torch.float64:
        _keeps_float64(trial)


def _keeps_float64(trial: Trial) -> None:
    """Law 5 of float64: moving x a little there and back moves outputs evenly, but for roundings to less."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.lived_in()
    shift = _SHIFT * trial.draw()
    with torch.no_grad():
        there, here, back = (trial.memory(given, state, start)[0] for given in (x + shift, x, x - shift))
    what = f"output, between what {_SHIFT:.0e} added to and taken from x makes it, in less than float64,"
    compare(5, what, here, (there + back) / 2, trial.tolerance)


def plain(trial: Trial) -> None:
    """Law 6: nothing is changed in place or hidden, and the state survives every way of travelling."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.lived_in()
    start[:, 0] = False  # a birth would put a copy in the place of the state given
    kept_x, kept_state = x.clone(), {n: v.clone() for n, v in state.items()}
    with torch.no_grad():
        y, after = trial.memory(x, state, start)
        trial.memory(trial.draw(), trial.lived_in(), start)
        compare(6, "x, which the memory changed in place", x, kept_x, 0.0)
        for name, value in kept_state.items():
            compare(6, f"state {name!r}, which the memory changed in place", state[name], value, 0.0)
        again, _ = trial.memory(x, state, start)
        compare(
            6, "output of the same call made twice, so something is hidden", again, y, trial.row_tolerance
        )
        travelled = {
            "pickle": pickle.loads(pickle.dumps(state)),
            "numpy": {n: torch.from_numpy(v.cpu().numpy()).to(trial.device) for n, v in state.items()},
            "safetensors": safetensors.load(safetensors.save(state)),
        }
        for name, copied in travelled.items():
            copied = {n: v.to(trial.device) for n, v in copied.items()}
            same, _ = trial.memory(x, copied, start)
            compare(6, f"output of a state that went through {name}", same, y, trial.row_tolerance)
        twin = _built_anew(trial)
        if twin is not None:
            same, _ = twin(x, state, start)
            what = "output of one built anew, something being neither in `config` nor in `state_dict()`,"
            compare(6, what, same, y, trial.row_tolerance)
    _, after = trial.memory(x.clone().requires_grad_(), state, start)
    attached = [name for name, value in detach_state(after).items() if value.requires_grad]
    if attached:
        raise MemoryLawError(6, f"detach_state leaves gradients on {attached}")


def _built_anew(trial: Trial) -> nn.Module | None:
    """Return what the memory's config builds, with its weights; None if it has none or was changed since."""
    build = getattr(getattr(trial.memory, "config", None), "build", None)
    if build is None or trial.autocast:
        return None
    with torch.random.fork_rng(devices=[]):
        twin = build().to(trial.device, trial.dtype).train(trial.memory.training)
    weights = trial.memory.state_dict()
    if type(twin) is not type(trial.memory) or twin.state_dict().keys() != weights.keys():
        return None
    twin.load_state_dict(weights)
    return twin


def empty_is_silent(trial: Trial) -> None:
    """Law 7: what retrieves reads exact zeros while nothing is stored, and never an unwritten slot."""
    memory: Any = trial.memory
    if not getattr(memory, "retrieves", False):
        return
    x, start = trial.draw(), trial.draw_starts()
    empty = memory.initial_state(BATCH)
    if not callable(getattr(memory, "read", None)):
        raise MemoryLawError(
            7, "`retrieves` is True, so it needs `read(x, state)`, which gives what x recalls"
        )
    others = no_stores(memory)
    unwritten = {
        n: torch.full_like(v, float("nan")) if v.is_floating_point() and n not in others else v
        for n, v in empty.items()
    }
    with torch.no_grad():
        for name, state in (("an empty store", empty), ("unwritten slots that hold NaN", unwritten)):
            answer = memory.read(x, state)
            compare(7, f"read-out of {name}", answer, torch.zeros_like(answer), 0.0)
        for name, cuts in (("in one segment", []), ("step by step", list(range(1, trial.steps)))):
            y, _ = trial.run(x, empty, start, cuts)
            poisoned, _ = trial.run(x, unwritten, start, cuts)
            compare(7, f"output with NaN in unwritten slots, {name}", poisoned, y, trial.row_tolerance)


def no_stores(memory: Any) -> list[str]:
    """Return the state's entries that by the memory's own word hold no stored items, so that all count."""
    stores = getattr(memory, "stores", None)
    return [] if stores is None else [name for name in memory.initial_state(1) if name not in stores]


def compiles(trial: Trial, backend: str) -> None:
    """Law 8: one step compiles whole and exports, and gives for two batch sizes what eager mode gives."""
    memory = trial.memory
    small, large = trial.lived_in(3), trial.lived_in(5)
    cases = [
        (trial.draw(n, 1), state, torch.arange(n, device=trial.device)[:, None] % 2 == 0)
        for n, state in ((3, small), (5, large))
    ]
    batch = torch.export.Dim("batch", min=2, max=4096)
    shapes = ({0: batch}, {name: {0: batch} for name in small}, {0: batch})
    # Dynamo counts recompilations per code object, and all memories share `Memory.forward`.
    torch.compiler.reset()
    builders: dict[str, Callable[[], Callable[..., Any]]] = {
        "torch.compile(fullgraph=True)": lambda: torch.compile(
            memory, fullgraph=True, dynamic=True, backend=backend
        ),
        "torch.export": lambda: torch.export.export(
            memory, cases[0], dynamic_shapes=shapes, strict=False
        ).module(),
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, build in builders.items():
            built = None
            for x, state, start in cases:
                try:
                    built = build() if built is None else built
                    y, after = built(x, state, start)
                except Exception as error:
                    raise MemoryLawError(
                        8, f"{name} of one step, {len(x)} rows: {first_line(error)}"
                    ) from error
                expected, expected_after = memory(x, state, start)
                compare(8, f"output of {name}", y, expected, trial.tolerance)
                for key, value in expected_after.items():
                    compare(8, f"state {key!r} of {name}", after[key], value, trial.tolerance)


def learns(trial: Trial, no_gradient: Sequence[str]) -> None:
    """Law 9: finite gradients reach x and every parameter but those that `no_gradient` names."""
    trial.memory.zero_grad()
    start = trial.draw_starts()
    start[:, 1:] = False
    start[0, 0] = True  # what is kept for good is written where an episode is young
    for time in (trial.steps, 1):
        x = trial.draw(time=time).requires_grad_()
        y, _ = trial.memory(x, trial.lived_in(), start[:, :time])
        _backward(_functional(y.float()))
        reached = _gradient(x)
        if not torch.isfinite(reached).all() or not reached.any():
            raise MemoryLawError(9, f"no finite gradient reaches x over {time} steps in {trial.dtype}")
    for name, parameter in trial.memory.named_parameters():
        where = f"parameter {name} in {trial.dtype}"
        if name in no_gradient or not parameter.requires_grad:
            continue
        if parameter.grad is None or not parameter.grad.any():
            raise MemoryLawError(9, f"no gradient reaches {where}")
        if not torch.isfinite(parameter.grad).all():
            raise MemoryLawError(9, f"the gradient of {where} is not finite")


def stays_finite(trial: Trial) -> None:
    """Law 5, long: over a million steps the output stays finite, and neither tensors nor module grow.

    Inputs are drawn, constant, zero and of alternating sign, a row of each. Then law 1, from there, with
    drawn inputs and with such as there were.
    """
    memory, piece = trial.memory, 1000
    state = memory.initial_state(len(_KINDS))
    drawn = trial.draw(1, piece)
    held: tuple[int, int] | None = None
    with torch.no_grad():
        for done in range(piece, _LONG_STEPS + 1, piece):
            y, state = memory(_of_each_kind(drawn, done // piece), state)
            finite = torch.isfinite(y).flatten(1).all(dim=1).tolist()
            if not all(finite):
                kind = _KINDS[finite.index(False)]
                raise MemoryLawError(5, f"the output is not finite within {done} steps of {kind} inputs")
            if done in (2 * piece, _LONG_STEPS):
                now = (_live_tensor_bytes(), len(pickle.dumps(memory)))
                if held is not None and (now[0] > held[0] or now[1] > held[1]):
                    raise MemoryLawError(
                        5, f"tensors and module grew from {held} bytes to {now} in {done} steps"
                    )
                held = now
    # What comes of a million steps is a state like any other.
    whence = f" after {_LONG_STEPS} steps"
    _cut_alike(trial, state, whence, trial.draw(len(_KINDS)))
    # Of what stays the same much is 0 or 1, where rounding must not decide which gradient there is.
    _cut_alike(trial, state, f"{whence}, of the same inputs again", _of_each_kind(drawn[:, : trial.steps]))


def _of_each_kind(drawn: Float[Tensor, "1 time dim"], turn: int = 0) -> Float[Tensor, "kinds time dim"]:
    """Return a row of inputs of each kind, the drawn ones rolled on by `turn` steps."""
    constant = drawn[:, :1].expand_as(drawn)
    alternating = constant.clone()
    alternating[:, 1::2] *= -1
    return torch.cat([drawn.roll(turn, dims=1), constant, torch.zeros_like(drawn), alternating])


def _live_tensor_bytes() -> int:
    gc.collect()
    storages = {
        o.untyped_storage().data_ptr(): o.untyped_storage().nbytes()
        for o in gc.get_objects()
        if type(o) in (Tensor, nn.Parameter) and o.layout == torch.strided
    }
    return sum(storages.values())


def first_line(error: Exception) -> str:
    """Name the error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error) or '(no message)').strip().splitlines()[0]}"


CHECKS: dict[int, Callable[[Trial], None]] = {
    1: step_is_sequence,
    2: start_is_birth,
    3: causal,
    4: rows_are_strangers,
    5: fixed_shape,
    6: plain,
    7: empty_is_silent,
}
