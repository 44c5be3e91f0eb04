"""Definition of policies by the model itself: one forward pass over the whole text, without a cache.

The model uses its own eager attention. Only two inputs of its attention modules are changed: the mask says
which tokens a query sees, and extra columns hold copies of tokens at other positions. A query that sees a
token at a distance other than in the text sees such a copy. The copy has the hidden state of its token and a
position id of its own. So this definition knows nothing about rotary embeddings: it only passes position ids.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

RECORDING = "recording"
_calls: list[nn.Module] = []

_MIXERS = {"ZayaAttention": "qkv_proj"}
"""Parts of attention modules that mix neighboring tokens, so that copies must be made of their outputs."""


class Text(NamedTuple):
    """Token ids, padding mask and position ids of a batch, each "batch length"."""

    ids: Tensor
    mask: Tensor
    positions: Tensor


class Copies(NamedTuple):
    """Columns after the text, each with the hidden state of a token of the same row."""

    tokens: Tensor
    """Column of the token in the text, "batch copies"."""
    positions: Tensor
    """Position id of the copy, "batch copies"."""


class View(NamedTuple):
    """Columns that the queries of a layer with full attention see."""

    mask: Tensor
    """"batch heads length columns"; the columns are those of the text, then the copies."""
    copies: Copies


Rule = Callable[[int], View]
"""Function from the index of an attention call to its view; all views have equally many copies."""


def causal_mask(text: Text) -> Tensor:
    """Return the mask of causal attention, "batch length length"; nobody sees padding."""
    length = text.ids.shape[1]
    return torch.ones(length, length, dtype=torch.bool).tril() & text.mask.bool()[:, None]


def view_stream(text: Text, budget: int, num_sinks: int) -> View:
    """Return the view of StreamingLLM: the first `num_sinks` and the last tokens, `budget` in total.

    Distances between the tokens that are left are those in the cache, where they stand side by side.
    """
    length = text.ids.shape[1]
    first = text.mask.long().argmax(dim=1)  # column of the first token after the padding
    time = torch.arange(length)[None] - first[:, None]
    age = time[:, :, None] - time[:, None]
    near = causal_mask(text) & ((age < budget - num_sinks) | (time[:, :, None] < budget))
    # A query after the budget sees sink s at the distance budget - 1 - s.
    query, sink = torch.meshgrid(torch.arange(length), torch.arange(num_sinks), indexing="ij")
    tokens = (first[:, None] + sink.flatten()).clamp(max=length - 1)
    positions = (text.positions[:, query.flatten()] - (budget - 1 - sink.flatten())).clamp(min=0)
    own = torch.arange(length)[:, None] == query.flatten()
    far = own[None] & (time >= budget)[:, :, None]
    return View(torch.cat([near, far], dim=2)[:, None], Copies(tokens, positions))


def view_text(text: Text) -> View:
    """Return the view of full attention: all earlier tokens of the text."""
    none = text.ids[:, :0]
    return View(causal_mask(text)[:, None], Copies(none, none))


def view_reports(
    text: Text, reports: Sequence[Tensor | None], heads: Sequence[int], moves: bool
) -> list[View]:
    """Return the views of layers whose key heads see the tokens `reports`, "batch key_heads length length".

    With `moves`, a query sees the tokens side by side, as if the others had never been in the text.
    `heads` are the numbers of query heads of the layers. A layer with its own window has None in `reports`;
    its view is without effect.
    """
    known_reports = [x for x in reports if x is not None]
    if not moves or not known_reports:
        none = Copies(text.ids[:, :0], text.ids[:, :0])
        views = [
            None if x is None else View(x.repeat_interleave(count // x.shape[1], dim=1), none)
            for x, count in zip(reports, heads, strict=True)
        ]
        return [view or view_text(text) for view in views]
    length, counts = text.ids.shape[1], known_reports[0].sum(dim=-1)[:, 0]
    misses = text.mask.bool() & (counts < causal_mask(text).sum(dim=-1))
    # Copies for the queries from the first one that misses a token: "batch key_heads queries slots".
    first = int(misses.any(dim=0).long().argmax()) if misses.any() else length
    most = int(counts[:, first:].max()) - 1 if misses.any() else 0
    queries, slot = length - first, torch.arange(most)
    # A query sees its own token in the text.
    is_slot = (slot < counts[:, first:, None] - 1) & misses[:, first:, None]
    positions = text.positions[:, first:, None] - (counts[:, first:, None] - 1 - slot)
    eye, views = torch.eye(length, dtype=torch.bool), []
    for x, count in zip(reports, heads, strict=True):
        if x is None:
            continue
        key_heads = x.shape[1]
        assert torch.equal(x.sum(dim=-1), counts[:, None].expand(-1, key_heads, -1))
        tokens = (~x[:, :, first:]).byte().argsort(dim=-1, stable=True)[..., :most]
        own_head = torch.eye(key_heads, dtype=torch.bool)[:, None, :, None, None]
        far = own_head & eye[:, None, first:, None] & is_slot[:, None, None, None]
        near = x & (~misses[:, None, :, None] | eye)
        mask = torch.cat([near, far.expand(-1, -1, length, -1, queries, most).flatten(3)], dim=3)
        places = positions.clamp(min=0)[:, None].expand(-1, key_heads, -1, -1)
        copies = Copies(tokens.flatten(1), places.flatten(1))
        views.append(View(mask.repeat_interleave(count // key_heads, dim=1), copies))
    remaining = iter(views)
    return [views[0] if x is None else next(remaining) for x in reports]


@torch.no_grad()
def attention_calls(model: PreTrainedModel, text: Text) -> list[nn.Module]:
    """Return the modules that call transformers' attention interface, in the order of their calls."""
    AttentionInterface.register(RECORDING, _record)
    _calls.clear()
    with implementation(model, RECORDING):
        run(model, text)
    return list(_calls)


def _record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    _calls.append(module)
    out = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return out[:, :, -query.shape[2] :].transpose(1, 2).contiguous(), None


@contextmanager
def implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model use an attention implementation inside the `with` block."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def run(model: PreTrainedModel, text: Text, **options: Any) -> Tensor:
    """Return the logits of a model for a text, without a cache by default."""
    decoder = model.get_decoder() if isinstance(model.get_decoder(), PreTrainedModel) else model.base_model
    if "position_ids" in inspect.signature(decoder.forward).parameters:
        options["position_ids"] = text.positions
    options = {"use_cache": False} | options
    return model(input_ids=text.ids, attention_mask=text.mask, **options).logits


@torch.no_grad()
def define(
    model: PreTrainedModel, text: Text, calls: Sequence[nn.Module], rule: Rule
) -> tuple[Tensor, list[bool]]:
    """Return the logits under a rule, and whether each call has full attention.

    Calls whose own mask hides earlier tokens keep their mask.
    """
    length = text.ids.shape[1]
    any_copies = rule(0).copies
    longer = Text(
        torch.cat([text.ids, text.ids.gather(1, any_copies.tokens)], dim=1),
        torch.cat([text.mask, torch.ones_like(any_copies.tokens)], dim=1),
        torch.cat([text.positions, any_copies.positions], dim=1),
    )
    hooks = _Hooks(length, rule)
    with ExitStack() as stack:
        stack.enter_context(implementation(model, "eager"))
        for module in dict.fromkeys(calls):
            hooks.install(module, stack)
        return run(model, longer)[:, :length], hooks.is_full


class _Hooks:
    """Hooks of one forward pass."""

    def __init__(self, length: int, rule: Rule) -> None:
        self.length, self.rule = length, rule
        self.is_full: list[bool] = []

    def install(self, module: nn.Module, stack: ExitStack) -> None:
        """Change the inputs of an attention module until the stack is closed."""
        signature = inspect.signature(module.forward)

        def change_inputs(_: nn.Module, args: Any, options: Any) -> Any:
            bound = signature.bind(*args, **options)
            view = self.rule(len(self.is_full))
            bound.arguments[next(iter(signature.parameters))] = self._copy(bound.args[0], view)
            masks = bound.arguments["attention_mask"]
            # Zaya passes two masks; the one of attention has four axes.
            bound.arguments["attention_mask"] = (
                {key: x if x is None or x.ndim < 4 else self._restrict(x, view) for key, x in masks.items()}
                if isinstance(masks, dict)
                else self._restrict(masks, view)
            )
            return bound.args, bound.kwargs

        def copy_outputs(_: nn.Module, __: Any, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(self._copy(x, self.rule(len(self.is_full) - 1)) for x in outputs)

        stack.callback(module.register_forward_pre_hook(change_inputs, with_kwargs=True).remove)
        if mixer := _MIXERS.get(type(module).__name__):
            stack.callback(getattr(module, mixer).register_forward_hook(copy_outputs).remove)

    def _copy(self, hidden: Tensor, view: View) -> Tensor:
        """Replace the columns after the text by copies of tokens."""
        rows = torch.arange(len(hidden))[:, None]
        text = hidden[:, : self.length]
        return torch.cat([text, text[rows, view.copies.tokens]], dim=1)

    def _restrict(self, mask: Tensor, view: View) -> Tensor:
        """Return a mask with the view's columns, if the mask is that of full attention."""
        sees = mask if mask.dtype == torch.bool else mask == 0
        # The last row has no padding, so a full layer lets its last token see its first.
        self.is_full.append(bool(sees[-1, 0, self.length - 1, 0]))
        sees = sees.expand(len(view.mask), view.mask.shape[1], -1, -1).clone()
        if self.is_full[-1]:
            sees[:, :, : self.length] = view.mask
        # Padding sees itself, since a softmax over nothing would be NaN.
        sees |= torch.eye(sees.shape[-1], dtype=torch.bool)
        if mask.dtype == torch.bool:
            return sees
        return torch.zeros(sees.shape, dtype=mask.dtype).masked_fill(~sees, torch.finfo(mask.dtype).min)
