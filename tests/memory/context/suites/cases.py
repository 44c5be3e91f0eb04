"""Cases of one model under all policies: which policies serve it, and comparisons with the definition."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import definition
import tiny
import torch
from definition import Rule, Text, View
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.cache import STATE_RESETTING_MODELS
from scrubjay.memory.context.layers.layer_types import get_layer_types
from scrubjay.memory.context.policies.base import ContextPolicy

BUDGET, SINKS, LENGTH, PADDING = 12, 2, 32, 5
POLICIES: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"budget": BUDGET},
    "sinks": {"budget": BUDGET, "num_sinks": SINKS},
    "h2o": {"budget": BUDGET, "recent": 5, "num_sinks": SINKS, "interval": 3},
    "snapkv": {"budget": BUDGET, "window": 4, "num_sinks": SINKS, "kernel": 3},
    "recycled": {"budget": BUDGET, "stride": 4, "num_sinks": SINKS, "kernel": 3},
    "chunks": {"budget": BUDGET, "chunk_size": 2, "local_chunks": 2, "store": "model"},
}
SAME_MODELS = dict.fromkeys(("adakv", "cake", "duo", "keydiff", "kvzap", "kvzip", "pyramidkv"), "snapkv")
SAME_MODELS |= dict.fromkeys(("task_kv", "tova", "zipvl"), "snapkv")
SAME_MODELS |= {"flexprefill": "full"}
SAME_MODELS |= {"expected_attention": "sinks", "refreshkv": "recycled"}
SAME_MODELS |= dict.fromkeys(("hip", "longheads", "quest"), "chunks")
"""Policies that serve the same models as others; `kvzip` refuses models that restart their states."""
STEPS = list(range(8, LENGTH))
"""Ends of the calls of a text in steps; the first call is longer than the padding."""
BLOCKS = [18, 23, *range(24, LENGTH)]
"""Ends of the calls of a text in blocks: a prompt, a second part, and single tokens."""
READ_ALL = ("h2o", "snapkv")
"""Policies whose queries see all tokens that the cache retains before a call."""
ROUNDING = 8.0
"""Largest error, in units of the error of the model's own attention in float32."""


@dataclass(frozen=True)
class Outcome:
    """Policies that serve a model, and the errors of the others."""

    policies: tuple[str, ...]
    reasons: dict[str, str]
    """Error message by policy."""


def find_outcome(name: str) -> Outcome:
    """Build a cache under every policy.

    A model that needs a package which is not installed is judged by its config.
    """
    reasons = {}
    try:
        model = tiny.make(name)
    except ImportError:
        try:
            get_layer_types(tiny.config_of(name).get_text_config(decoder=True))
        except ValueError as refusal:
            return Outcome((), dict.fromkeys(POLICIES, str(refusal)))
        raise
    for policy, sizes in POLICIES.items():
        try:
            PolicyCache(context.make(policy, **sizes), model)
        except ValueError as refusal:
            reasons[policy] = str(refusal)
    return Outcome(tuple(policy for policy in POLICIES if policy not in reasons), reasons)


def make_text(padding: int) -> Text:
    """Return two texts without repeated tokens; the first is shorter by `padding`."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([2 + torch.randperm(120, generator=generator)[:LENGTH] for _ in range(2)])
    ids[0] = torch.cat([torch.zeros(padding, dtype=torch.long), ids[0, : LENGTH - padding]])
    mask = (torch.arange(LENGTH) >= torch.tensor([[padding], [0]])).long()
    return Text(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))


def read(model: PreTrainedModel, cache: Cache, text: Text, ends: list[int]) -> Tensor:
    """Return the logits of a text that is read in calls which end at `ends`."""
    return torch.cat([logits for logits, _, _ in _call(model, cache, text, ends)], dim=1)


@torch.no_grad()
def _call(
    model: PreTrainedModel, cache: Cache, text: Text, ends: list[int]
) -> Iterator[tuple[Tensor, int, int]]:
    if ends and model.config.model_type in STATE_RESETTING_MODELS:
        ends = [ends[0], *range(ends[0] + 1, LENGTH)]  # these models read a prompt in one call
    begin = 0
    for end in [*ends, LENGTH]:
        part = Text(text.ids[:, begin:end], text.mask[:, :end], text.positions[:, begin:end])
        yield definition.run(model, part, cache=cache, use_cache=True), begin, end
        begin = end


def read_and_report(
    model: PreTrainedModel, policy: ContextPolicy, text: Text, ends: list[int]
) -> tuple[Tensor, list[View]]:
    """Return the logits of a text, and what each layer with keys reports to have read."""
    cache = PolicyCache(policy, model, track_tokens=True)
    layers, parts = cache.attention_layers, []
    reports: list[Any] = [None] * len(layers)
    masks: dict[int, Tensor] = {}
    for logits, begin, end in _call(model, cache, text, ends):
        parts.append(logits)
        after = cache.get_retained_tokens()
        if context.name_of(policy) not in READ_ALL:
            masks = {index: tokens.read_mask for index, tokens in after.items()}
        for number, layer in enumerate(layers):
            if not layer.sees_everything or layer.shape is None:
                continue
            if reports[number] is None:
                causal = definition.causal_mask(text)[:, None]
                reports[number] = causal.repeat(1, layer.shape.key_heads, 1, 1)
            if begin:
                reports[number][:, :, begin:end, :begin] = _to_columns(masks[layer.index], text)[
                    :, :, None, :begin
                ]
        masks = {index: tokens.stored_mask for index, tokens in after.items()}
    heads = [layer.shape.heads for layer in layers if layer.shape is not None]
    return torch.cat(parts, dim=1), definition.view_reports(text, reports, heads, policy.moves_positions)


def _to_columns(tokens: Tensor, text: Text) -> Tensor:
    """Convert a mask by token of a text, without padding, to a mask by column."""
    columns = torch.zeros(*tokens.shape[:2], LENGTH, dtype=torch.bool)
    for row, padding in enumerate(text.mask.argmax(dim=1).tolist()):
        part = tokens[row, :, : LENGTH - padding]
        columns[row, :, padding : padding + part.shape[1]] = part
    return columns


def error(left: Tensor, right: Tensor, text: Text) -> float:
    """Return the largest difference at tokens of the text."""
    return float((left.double() - right.double())[text.mask.bool()].abs().max())


class Models:
    """A model in float64 and in float32, and its calls of attention."""

    def __init__(self, name: str) -> None:
        self.double, self.single = tiny.make(name), tiny.make(name, torch.float32)
        self.calls: list[list[nn.Module]] = [
            definition.attention_calls(model, make_text(0)) for model in (self.double, self.single)
        ]

    def define(self, text: Text, rule: Rule) -> tuple[Tensor, float, list[bool]]:
        """Return the logits of the definition, their rounding error in float32, and the full layers."""
        exact, is_full = definition.define(self.double, text, self.calls[0], rule)
        approximate, _ = definition.define(self.single, text, self.calls[1], rule)
        rounding = error(exact, approximate, text)
        assert rounding < 1e-3 * float(exact.abs().max()), "rounding would hide an error"
        return exact, rounding, is_full


def compare(name: str, policies: tuple[str, ...]) -> None:
    """Compare a model under some policies with the definition.

    Raises AssertionError on wrong numbers. The bound on errors is `ROUNDING` times the error that the model's
    own attention makes in float32.
    """
    models = Models(name)
    for padding in (0, PADDING):
        text = make_text(padding)
        view = definition.view_text(text)
        everything, _, is_full = models.define(text, lambda _, x=view: x)
        for policy in policies:
            _compare_policy(models, policy, text, everything if any(is_full) else None)


def _compare_policy(models: Models, name: str, text: Text, everything: Tensor | None) -> None:
    policy = context.make(name, **POLICIES[name])
    calls = [STEPS, [], BLOCKS] if policy.split_invariant else [BLOCKS]

    def run(model: PreTrainedModel, ends: list[int]) -> Tensor:
        return read(model, PolicyCache(policy, model), text, ends)

    def check(case: str, logits: Tensor, exact: Tensor, rounding: float) -> None:
        difference = error(logits, exact, text)
        assert difference <= ROUNDING * rounding, f"{name}, {case}: error {difference}, rounding {rounding}"

    if name in ("full", "window", "sinks"):
        view = definition.view_text(text)
        if name != "full":
            view = definition.view_stream(text, BUDGET, SINKS if name == "sinks" else 0)
        exact, rounding, _ = models.define(text, lambda _: view)
        check("float32", run(models.single, BLOCKS), exact, rounding)
    else:
        # Rounding may decide which tokens are evicted, so each precision has a definition of its own.
        for model in (models.single, models.double):
            logits, views = read_and_report(model, policy, text, calls[0])
            exact, rounding, _ = models.define(text, lambda index, x=views: x[index])
            check(f"reports of {model.dtype}", logits, exact, rounding)
    for ends in calls:
        check(f"calls that end at {ends}", run(models.double, ends), exact, rounding)
    if everything is not None and name != "full":
        assert error(exact, everything, text) > 100 * ROUNDING * rounding, f"{name} drops nothing"
