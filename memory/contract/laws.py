"""The laws of the contract: one check function per law, run on a `Trial`."""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, State, detach_state
from scrubjay.memory.contract.precision import check_precision
from scrubjay.memory.contract.trial import BATCH, Blur, MemoryLawError, Nearby, Trial, compare

# Values before a start: NaN and inf, and finite values that overflow in a product.
_POISONS = (float("nan"), float("inf"), 1e20, 1e30)


def check_step_equals_sequence(trial: Trial) -> None:
    """Law 1: every division of a sequence into segments gives the same outputs, final state and gradients.

    Steppers must give the same outputs and final state. A memory with a clock is also tested from an age of
    more than a million steps.
    """
    compare_cuts(trial, trial.draw_state())
    aged = trial.draw_aged_state()
    if aged is not None:
        compare_cuts(trial, aged, " from an age of a million steps")


def compare_cuts(trial: Trial, state: State, suffix: str = "", x: Tensor | None = None) -> None:
    """Compare the results of several divisions of a sequence `x` that starts from `state`.

    By default `x` is random. `suffix` is appended to error messages.
    """
    x = trial.draw() if x is None else x
    start = trial.draw_starts(len(x))
    whole = _run_with_gradients(trial, x, state, start, cuts=[])

    def run(trial: Trial, blur: Blur) -> dict[str, Tensor]:
        return _run_with_gradients(trial, blur(x), {n: blur(v) for n, v in state.items()}, start, cuts=[])

    nearby = Nearby(trial, run)
    middle = sorted({1, trial.steps // 3, trial.steps // 3 + 1, trial.steps - 2})
    for name, cuts in (("one step at a time", list(range(1, trial.steps))), (f"cut at {middle}", middle)):
        pieces = _run_with_gradients(trial, x, state, start, cuts)
        for what, expected in whole.items():
            label = f"{what}, {name} against one segment{suffix}"
            compare(1, label, pieces[what], expected, trial.tolerance, bound=nearby.bound(what))
    if isinstance(trial.memory, Memory):
        copies = {name: value.clone() for name, value in state.items()}
        for what, results in _run_steppers(trial, x, state, start).items():
            label = f"{what}, of a stepper against one segment{suffix}"
            compare(1, label, results, whole[what], trial.tolerance, bound=nearby.bound(what))
        for name, value in state.items():
            compare(1, f"state {name!r} from which a stepper was created", value, copies[name], 0.0)


def _name_results(output: Tensor, state: State) -> dict[str, Tensor]:
    """Return output and state entries by the names that error messages have for them."""
    return {"output": output} | {f"state {name!r}": value for name, value in state.items()}


def _run_steppers(trial: Trial, x: Tensor, state: State, start: Tensor) -> dict[str, Tensor]:
    """Return outputs and final state of two steppers; the second continues from the state of the first."""
    outputs = []
    for steps in (range(trial.steps // 3), range(trial.steps // 3, trial.steps)):
        with trial.autocast_context():
            stepper = trial.memory.stepper(state)
            outputs += [stepper.step(x[:, t], start[:, t]) for t in steps]
        state = stepper.state()
    return _name_results(torch.stack(outputs, dim=1), state)


def _run_with_gradients(
    trial: Trial, x: Tensor, state: State, start: Tensor, cuts: Sequence[int]
) -> dict[str, Tensor]:
    """Return outputs, final state, and the gradients of a fixed linear function of outputs and state."""
    x = x.clone().requires_grad_()
    trial.memory.zero_grad()
    y, after = trial.run(x, state, start, cuts)
    results = {name: value.detach() for name, value in _name_results(y, after).items()}
    loss = _functional(y) + sum(_functional(value) for value in after.values() if value.requires_grad)
    _backward(loss)
    results["gradient of x"] = _gradient(x)
    for name, parameter in trial.memory.named_parameters():
        results[f"gradient of parameter {name}"] = _gradient(parameter)
    return results


def _backward(loss: Tensor) -> None:
    """Run the backward pass if the loss has a graph. Law 9 reports a loss without a graph."""
    if loss.requires_grad:
        loss.backward()


def _gradient(value: Tensor) -> Tensor:
    """Return a copy of the gradient of a tensor, zeros if it has none."""
    return torch.zeros_like(value) if value.grad is None else value.grad.clone()


def _functional(value: Tensor) -> Tensor:
    """Return a fixed linear function of a tensor, scaled so that gradients are comparable across sizes."""
    weights = torch.cos(torch.arange(value.numel(), device=value.device, dtype=torch.float64)).to(value.dtype)
    return (value * weights.view_as(value)).sum() / max(1, value.numel()) ** 0.5


def _run_fresh_episodes(trial: Trial, x: Tensor, starting_steps: Sequence[int]) -> dict[str, Tensor]:
    """Return the results of one episode in each row, which begins at its step, and the summed parameter
    gradients."""
    results = {}
    trial.memory.zero_grad()
    for row, t in enumerate(starting_steps):
        fresh = x[row : row + 1, t:].clone().requires_grad_()
        output, after = trial.memory(fresh, trial.memory.initial_state(1))
        _backward(_functional(output[0]))
        episode = _name_results(output.detach(), detach_state(after)) | {"gradient of x": _gradient(fresh)}
        results |= {f"{name} {row}": value for name, value in episode.items()}
    return results | {
        f"gradient of parameter {name}": _gradient(parameter)
        for name, parameter in trial.memory.named_parameters()
    }


def check_start_resets(trial: Trial) -> None:
    """Law 2: results after a start equal those of an episode without earlier inputs."""
    starting_steps = [0, trial.steps // 2, trial.steps - 1]
    clean, initial_state = trial.draw(), trial.draw_state()
    start = torch.zeros(BATCH, trial.steps, dtype=torch.bool, device=trial.device)
    for row, t in enumerate(starting_steps):
        start[row, t] = True
    start[2, trial.steps // 3] = True
    # Earlier values must not matter, so one expectation serves all of them.
    nearby = Nearby(trial, lambda trial, blur: _run_fresh_episodes(trial, blur(clean), starting_steps))
    expected = _run_fresh_episodes(trial, clean, starting_steps)
    # All values are tested at once, each in its own rows: rows are independent by law 4.
    for poisons in ((None,), _POISONS):
        x = clean.repeat(len(poisons), 1, 1)
        state = {n: torch.cat([v] * len(poisons)) for n, v in initial_state.items()}
        for index, poison in enumerate(poisons):
            if poison is None:
                continue
            for row, t in enumerate(starting_steps, start=index * BATCH):
                x[row, :t] = poison
            for value in state.values():
                if value.is_floating_point():
                    value[index * BATCH : (index + 1) * BATCH] = poison
        starts = start.repeat(len(poisons), 1)
        for name, cuts in (("in one segment", []), ("step by step", list(range(1, trial.steps)))):
            how = [f"with {'finite values' if p is None else p} before it, {name}" for p in poisons]
            _compare_episodes(
                trial, x, state, starts, expected, starting_steps, nearby, cuts, how, poisons == (None,)
            )


def _compare_episodes(
    trial: Trial,
    x: Tensor,
    state: State,
    start: Tensor,
    expected: dict[str, Tensor],
    starting_steps: list[int],
    nearby: Nearby,
    cuts: list[int],
    how: list[str],
    finite: bool,
) -> None:
    """Run a batch in which an episode starts midway, and compare the results from there on with fresh
    episodes.

    The batch has one block of rows for each description in `how`. Each block has one row for each starting
    step. `expected` are the results of the fresh episodes.
    """
    # Without cuts the gradients are those of the parallel path. Step by step, gradients under NaN are
    # undefined.
    differentiable = finite or not cuts
    x = x.clone().requires_grad_()
    state = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in state.items()}
    trial.memory.zero_grad()
    steps = starting_steps * len(how)
    with torch.set_grad_enabled(differentiable):
        y, after = trial.run(x, state, start, cuts)
    if differentiable:
        _backward(torch.stack([_functional(y[row, t:]) for row, t in enumerate(steps)]).sum())
    for row, t in enumerate(steps):
        block, episode = divmod(row, len(starting_steps))
        rows = slice(row, row + 1)
        actual = _name_results(y[rows, t:], {name: value[rows] for name, value in after.items()})
        gradient = _gradient(x)[rows]
        if differentiable:
            actual["gradient of x"] = gradient[:, t:]
        for what, value in actual.items():
            name, label = f"{what} {episode}", f"{what} after a start {how[block]}"
            compare(2, label, value, expected[name], trial.tolerance, t, nearby.bound(name))
        if finite:
            before, label = gradient[:, :t], f"gradient of x before a start {how[block]}"
            compare(2, label, before, torch.zeros_like(before), 0.0)
    # The backward pass of `where` gives 0 * NaN for NaN inputs; these gradients are not needed.
    if finite:
        for name, value in state.items():
            if value.grad is not None:
                label = f"gradient of the old state {name!r} {how[0]}"
                compare(2, label, value.grad, torch.zeros_like(value), 0.0)
        for name, parameter in trial.memory.named_parameters():
            what = f"gradient of parameter {name}"
            actual_gradient, label = _gradient(parameter), f"{what} {how[0]}"
            compare(2, label, actual_gradient, expected[what], trial.tolerance, bound=nearby.bound(what))


def check_causal(trial: Trial) -> None:
    """Law 3: changing later inputs, also to NaN, does not change earlier outputs."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.draw_state()
    with torch.no_grad():
        y, _ = trial.memory(x, state, start)
        for t in {trial.steps // 4, trial.steps // 2, trial.steps - 2}:
            for name, later in (("other values", trial.draw()), ("NaN", torch.full_like(x, float("nan")))):
                other_x = torch.cat([x[:, : t + 1], later[:, t + 1 :]], dim=1)
                earlier, _ = trial.memory(other_x, state, start)
                what = f"output up to step {t} when later inputs become {name}"
                compare(3, what, earlier[:, : t + 1], y[:, : t + 1], trial.row_tolerance)


def check_rows_independent(trial: Trial) -> None:
    """Law 4: results of a row do not depend on the other rows of the batch.

    The batch is permuted, rows are added and removed, and one row contains NaN or 1e20.
    """
    x, start, state = trial.draw(), trial.draw_starts(), trial.draw_state()
    orders = {
        "rows permuted": [2, 0, 1],
        "a row removed": [0, 2],
        "one row alone": [1],
        "rows added": [0, 1, 2, 1, 0],
    }

    def run(trial: Trial, blur: Blur, length: int) -> dict[str, Tensor]:
        near = {name: blur(value) for name, value in state.items()}
        y, after = trial.memory(blur(x[:, :length]), near, start[:, :length])
        return _name_results(y, after)

    with torch.no_grad():
        for path, length in (("segment", trial.steps), ("step", 1)):
            expected = run(trial, lambda value: value, length)
            y = expected["output"]
            nearby = Nearby(trial, functools.partial(run, length=length))
            for name, order in orders.items():
                rows = torch.tensor(order, device=trial.device)
                again = {n: v[rows] for n, v in state.items()}
                y_rows, after_rows = trial.memory(x[rows, :length], again, start[rows, :length])
                for what, value in _name_results(y_rows, after_rows).items():
                    label, bound = f"{what} of a {path} with {name}", nearby.bound(what, rows)
                    compare(4, label, value, expected[what][rows], trial.row_tolerance, bound=bound)
            for name, poison in (("NaN", float("nan")), ("1e20", 1e20)):
                other_x = x[:, :length].clone()
                other_x[0] = poison
                other_state = {n: v.clone() for n, v in state.items()}
                for value in other_state.values():
                    if value.is_floating_point():
                        value[0] = poison
                cases = (("row", (other_x, state)), ("state", (x[:, :length], other_state)))
                for part, inputs in cases:
                    beside, _ = trial.memory(*inputs, start[:, :length])
                    what = f"output of a {path} next to a {part} of {name}"
                    bound = nearby.bound("output", slice(1, None))
                    compare(4, what, beside[1:], y[1:], trial.row_tolerance, bound=bound)


def check_fixed_shape(trial: Trial) -> None:
    """Law 5: shapes, dtypes and bytes of the state are those of the initial state."""
    for batch in (1, 4):
        state = trial.memory.initial_state(batch)
        initial = {n: (v.shape, v.dtype) for n, v in state.items()}
        for name, value in state.items():
            if value.shape[:1] != (batch,):
                raise MemoryLawError(
                    5, f"state {name!r} has shape {tuple(value.shape)}, not batch first ({batch})"
                )
        if hasattr(trial.memory, "state_bytes"):
            exact = sum(v.numel() * v.element_size() for v in state.values())
            state_bytes = trial.memory.state_bytes(batch)
            if state_bytes != exact:
                raise MemoryLawError(
                    5, f"state_bytes({batch}) returns {state_bytes}, but the state has {exact} bytes"
                )
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
                    storage = value.untyped_storage().nbytes()
                    if not value.is_contiguous() or storage != value.numel() * value.element_size():
                        raise MemoryLawError(
                            5, f"state {name!r} is a view of a tensor of {storage} bytes; return a copy"
                        )
                now = {n: (v.shape, v.dtype) for n, v in state.items()}
                if now != initial:
                    raise MemoryLawError(
                        5, f"after call {step} of {time} steps the state changed from {initial} to {now}"
                    )
    check_precision(trial)


def check_no_hidden_state(trial: Trial) -> None:
    """Law 6: nothing is modified in place or hidden, and the state survives serialization."""
    x, start, state = trial.draw(), trial.draw_starts(), trial.draw_state()
    start[:, 0] = False  # a reset would replace the state with a copy
    kept_x, kept_state = x.clone(), {n: v.clone() for n, v in state.items()}
    with torch.no_grad():
        y, after = trial.memory(x, state, start)
        trial.memory(trial.draw(), trial.draw_state(), start)
        compare(6, "x, which the memory modified in place", x, kept_x, 0.0)
        for name, value in kept_state.items():
            compare(6, f"state {name!r}, which the memory modified in place", state[name], value, 0.0)
        again, _ = trial.memory(x, state, start)
        compare(
            6, "output of the same call repeated, so there is hidden state,", again, y, trial.row_tolerance
        )
        copies = {
            "pickle": pickle.loads(pickle.dumps(state)),
            "numpy": {n: torch.from_numpy(v.cpu().numpy()).to(trial.device) for n, v in state.items()},
            "safetensors": safetensors.load(safetensors.save(state)),
        }
        for name, loaded_state in copies.items():
            loaded_state = {n: v.to(trial.device) for n, v in loaded_state.items()}
            same, _ = trial.memory(x, loaded_state, start)
            compare(6, f"output from a state serialized with {name}", same, y, trial.row_tolerance)
        twin = _rebuild(trial)
        if twin is not None:
            same, _ = twin(x, state, start)
            what = "output of a rebuilt memory, so something is neither in `config` nor in `state_dict()`,"
            compare(6, what, same, y, trial.row_tolerance)
    _, after = trial.memory(x.clone().requires_grad_(), state, start)
    with_graph = [name for name, value in detach_state(after).items() if value.requires_grad]
    if with_graph:
        raise MemoryLawError(6, f"detach_state leaves gradients on {with_graph}")


def _rebuild(trial: Trial) -> nn.Module | None:
    """Rebuild the memory from its config and weights; None if the memory has no config or was modified."""
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


def check_empty_reads_zero(trial: Trial) -> None:
    """Law 7: reading from an empty store gives exact zeros, and unwritten slots have no effect."""
    memory: Any = trial.memory
    if not getattr(memory, "retrieves", False):
        return
    x, start = trial.draw(), trial.draw_starts()
    empty = memory.initial_state(BATCH)
    if not callable(getattr(memory, "read", None)):
        raise MemoryLawError(
            7, "`retrieves` is True, so it needs a method `read(x, state)` that returns the read-out for x"
        )
    others = list_other_entries(memory)
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
            with_nan, _ = trial.run(x, unwritten, start, cuts)
            compare(7, f"output with NaN in unwritten slots, {name}", with_nan, y, trial.row_tolerance)


def list_other_entries(memory: Any) -> list[str]:
    """Return the names of the state entries that are not in the memory's `stores`; [] if `stores` is None."""
    stores = getattr(memory, "stores", None)
    return [] if stores is None else [name for name in memory.initial_state(1) if name not in stores]


def check_compiles(trial: Trial, backend: str) -> None:
    """Law 8: one step can be compiled as a full graph and exported.

    The compiled and the exported step give the results of eager mode for two batch sizes.
    """
    memory = trial.memory
    small, large = trial.draw_state(3), trial.draw_state(5)
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
            function = None
            for x, state, start in cases:
                try:
                    function = build() if function is None else function
                    y, after = function(x, state, start)
                except Exception as error:
                    raise MemoryLawError(
                        8, f"{name} of one step, {len(x)} rows: {first_line(error)}"
                    ) from error
                expected, expected_after = memory(x, state, start)
                compare(8, f"output of {name}", y, expected, trial.tolerance)
                for key, value in expected_after.items():
                    compare(8, f"state {key!r} of {name}", after[key], value, trial.tolerance)


def check_learns(trial: Trial, no_gradient: Sequence[str]) -> None:
    """Law 9: finite gradients reach x and every parameter that is not named in `no_gradient`."""
    trial.memory.zero_grad()
    start = trial.draw_starts()
    start[:, 1:] = False
    start[0, 0] = True  # some stores are only written early in an episode
    for time in (trial.steps, 1):
        x = trial.draw(time=time).requires_grad_()
        y, _ = trial.memory(x, trial.draw_state(), start[:, :time])
        _backward(_functional(y.float()))
        gradient = _gradient(x)
        if not torch.isfinite(gradient).all() or not gradient.any():
            raise MemoryLawError(9, f"no finite gradient reaches x over {time} steps in {trial.dtype}")
    for name, parameter in trial.memory.named_parameters():
        where = f"parameter {name} in {trial.dtype}"
        if name in no_gradient or not parameter.requires_grad:
            continue
        if parameter.grad is None or not parameter.grad.any():
            raise MemoryLawError(9, f"no gradient reaches {where}")
        if not torch.isfinite(parameter.grad).all():
            raise MemoryLawError(9, f"the gradient of {where} is not finite")


def first_line(error: Exception) -> str:
    """Return the error's class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error) or '(no message)').strip().splitlines()[0]}"


CHECKS: dict[int, Callable[[Trial], None]] = {
    1: check_step_equals_sequence,
    2: check_start_resets,
    3: check_causal,
    4: check_rows_independent,
    5: check_fixed_shape,
    6: check_no_hidden_state,
    7: check_empty_reads_zero,
}
