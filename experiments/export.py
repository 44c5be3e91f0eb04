"""Export of a policy: one step as a torch.export or ONNX program, or weights with a model card."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scrubjay.agents.learners import get_learner_name
from scrubjay.agents.rl.masks.action_masks import MASK
from scrubjay.agents.rl.model_card import Origin
from scrubjay.agents.rl.observations import from_leaves, leaf_spaces, to_leaves, to_tensors
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.segment import Observation
from scrubjay.experiments.files import replacement, write_atomically
from scrubjay.experiments.resources import hide_warnings
from scrubjay.experiments.runs.checkpoint import LATEST
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.tasks.environments import gymnasium_id
from scrubjay.memory import State

TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 2, 5)
_CHECKED_STEPS = 6


class PolicyStepModule(nn.Module):
    """Policy step `(observation, state, start) -> (action, value, state)` with the most likely action.

    Actions are not yet converted to the action space: they are zero-based indices, or real numbers before
    clipping. The action of a Dict or Tuple space is one vector with the numbers of all parts, in the order of
    the sorted keys of a Dict. The first axis of every tensor is the batch. A policy with action masks outside
    the observations has a fourth input, `action_mask`: booleans `[batch, actions]`.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self, observation: Observation, state: State, start: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Process one observation for every item of the batch."""
        if action_mask is not None:
            observation = {**to_leaves(observation), MASK: action_mask}
        step = self.policy.step(observation, state, start, deterministic=True)
        return step.action, step.value, step.state


def export_torch(policy: Policy, out: Path | str) -> float:
    """Write a `torch.export` program (.pt2) for any batch size; return its largest error after reloading.

    The error is the difference between outputs of the program and of the policy.

    To run the program, call `torch.export.load(out).module()(observation, state, start)`, with the masks as a
    fourth argument if the policy has `action_masks`. This does not need Scrubjay, unless the memory uses
    custom kernels. Raises ValueError if the program does not reproduce the
    policy.
    """
    module = _on_cpu(policy)
    example = _example(module.policy)
    program = torch.export.export(module, example, dynamic_shapes=_any_batch(*example))
    _make_parent(out)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(Path(out), buffer.getvalue())
    # Load from bytes, since torch warns about file names without its own ending.
    reloaded_program = torch.export.load(io.BytesIO(Path(out).read_bytes())).module()
    return _largest_error(module, reloaded_program, "the exported program")


def export_onnx(policy: Policy, out: Path | str) -> float:
    """Write an ONNX model for any batch size and return its largest error under ONNX's reference evaluator.

    The error is the difference between outputs of the model and of the policy.

    The inputs are the observation (one input per key of a dict), each state tensor, and `start`, which is
    True for environments that begin an episode. A policy with `action_masks` has the masks as its last input.
    The outputs are the action, the value, and each next state tensor. Raises ValueError if onnx and
    onnxscript are missing, if the memory uses an operation that ONNX lacks, or if the file does not
    reproduce the policy.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX export needs {' and '.join(missing)}: pip install 'scrubjay[onnx]'")
    import onnx.reference

    module = _on_cpu(policy)
    example = _example(module.policy)
    _make_parent(out)
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=_any_batch(*example),
                custom_translation_table=_translations(),
                verbose=False,
            )
            with replacement(Path(out)) as new:
                program.save(str(new))
        session: Any = onnx.reference.ReferenceEvaluator(str(out))
    except (torch.onnx.errors.OnnxExporterError, NotImplementedError, RuntimeError) as error:
        name = type(policy.memory).__name__
        raise ValueError(
            f"{name} cannot be exported to ONNX ({_root_cause(error)}); omit --onnx to use torch.export"
        ) from error

    names = list(example[1])

    def run(
        observation: Observation, state: State, start: Tensor, *masks: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        tensors = [*to_leaves(observation).values(), *state.values(), start, *masks]
        arrays = [tensor.numpy() for tensor in tensors]
        # The evaluator takes the logarithm of the probability 0 of a forbidden action; the mask replaces it.
        with np.errstate(divide="ignore"):
            outputs = session.run(None, dict(zip(session.input_names, arrays, strict=True)))
        action, value, *rest = (torch.from_numpy(np.asarray(output)) for output in outputs)
        return action, value, dict(zip(names, rest, strict=True))

    return _largest_error(module, run, "the ONNX model")


def export_pretrained(run: Run, out: Path) -> str:
    """Save the policy of the run's checkpoint to `out`, and return the name of the class that can load it.

    Raises ValueError if there is no checkpoint, or if `out` holds other files. Raises TypeError if the run
    has no policy.
    """
    policy = run.team_policy if run.config.policy_type == "team" else run.policy
    policy.save_pretrained(out, origin(run))
    again = type(policy).from_pretrained(out, trust=True).state_dict()  # code of the loaded policy
    for name, value in policy.state_dict().items():
        if not torch.equal(again[name], value):
            raise ValueError(f"{out}: the exported {name!r} differs from the policy; do not use this export")
    return type(policy).__name__


def origin(run: Run) -> Origin:
    """Return the model card data of the policy, with results if they are those of its checkpoint."""
    config: Any = run.config
    result = run.result if run.is_finished and run.checkpoint_name == LATEST else {}
    return Origin(
        environment=gymnasium_id(config.env.id),
        settings=config.env.kwargs,
        wrappers=config.env.wrappers,
        learner=get_learner_name(config.learner),
        steps=run.step,
        seed=config.seed,
        result={name: value for name, value in result.items() if name not in ("step", "seconds")},
    )


def _translations() -> dict[Any, Callable[..., Any]]:
    """Return a translation of stable sort to ONNX TopK. torch's exporter has no such translation.

    As in a stable sort, TopK returns the lower index first if values are equal.
    """
    op: Any = importlib.import_module("onnxscript").opset18

    def sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: sort}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of torch's exporter about optional packages."""
    with hide_warnings("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _on_cpu(policy: Policy) -> PolicyStepModule:
    return PolicyStepModule(copy.deepcopy(policy).cpu()).eval()


def _example(policy: Policy, batch_size: int = 2, seed: int = 0) -> tuple[Any, ...]:
    observation = _observations(policy, batch_size, seed)
    start = torch.zeros(batch_size, dtype=torch.bool)
    return observation, policy.initial_state(batch_size), start, *_draw_masks(policy, batch_size, seed)


def _draw_masks(policy: Policy, batch_size: int, seed: int) -> list[Tensor]:
    """Return a batch of masks outside the observations, in a list; an empty list without such masks."""
    if not policy.action_masks:
        return []
    leaf = policy.spaces.leaves[MASK]
    leaf.seed(seed)
    return [torch.stack([torch.as_tensor(leaf.sample()) > 0 for _ in range(batch_size)])]


def _observations(policy: Policy, batch_size: int, seed: int) -> Observation:
    space = policy.observation_space
    space.seed(seed)
    singles = [to_leaves(to_tensors(space, space.sample(), torch.device("cpu"))) for _ in range(batch_size)]
    batch = {key: torch.stack([single[key] for single in singles]) for key in leaf_spaces(space)}
    return from_leaves(batch)


def _any_batch(observation: Observation, state: State, *others: Tensor) -> tuple[Any, ...]:
    batch = {0: torch.export.Dim.DYNAMIC}
    observation_dims = dict.fromkeys(observation, batch) if isinstance(observation, dict) else batch
    return observation_dims, dict.fromkeys(state, batch), *[batch] * len(others)


def _largest_error(module: PolicyStepModule, exported_step: Callable[..., Any], description: str) -> float:
    """Run the policy step and its export for a few steps; return the largest difference of outputs."""
    differences = [torch.zeros((), dtype=torch.double)]
    for batch_size in _CHECKED_BATCHES:
        state = other_state = module.policy.initial_state(batch_size)
        for step in range(_CHECKED_STEPS):
            observation = _observations(module.policy, batch_size, seed=step)
            start = torch.zeros(batch_size, dtype=torch.bool)
            start[0] = step == _CHECKED_STEPS // 2
            others = start, *_draw_masks(module.policy, batch_size, seed=step)
            with torch.no_grad():
                action, value, state = module(observation, state, *others)
                other_action, other_value, other_state = exported_step(observation, other_state, *others)
            pairs = [(action, other_action), (value, other_value)]
            pairs += [(state[key], other_state[key]) for key in state]
            differences += [_difference(*pair) for pair in pairs]
    largest = float(torch.stack(differences).max())  # NaN if one difference is NaN
    if not largest <= TOLERANCE:
        raise ValueError(
            f"{description} differs from the policy by {largest:.1e} in an output; the tolerance is "
            f"{TOLERANCE:.0e}"
        )
    return largest


def _make_parent(out: Path | str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)


def _difference(expected: Tensor, actual: Tensor) -> Tensor:
    """Return the largest difference of two tensors, 0 for equal ones, with NaN equal to NaN."""
    expected, actual = expected.double(), actual.double()
    equal = (expected == actual) | (expected.isnan() & actual.isnan())
    differences = (expected - actual).abs().masked_fill(equal, 0)
    return differences.max() if differences.numel() else differences.new_zeros(())
