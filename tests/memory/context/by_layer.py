"""Policies that have no name of their own, and helpers of the policy tests."""

import ast
import re
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scrubjay.memory.context import CacheShape, ContextPolicy, LayerStats, make
from scrubjay.memory.context.elsewhere.policy import ElsewherePolicy
from scrubjay.memory.context.elsewhere.stores import TableStore
from scrubjay.memory.context.identity import architecture
from scrubjay.memory.context.layers.layer_types import get_layer_types
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.budget import split_budget
from scrubjay.memory.context.policies.scored.cake import CAKEPolicy
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy
from scrubjay.memory.context.policies.sinks import SinksPolicy


@dataclass(frozen=True)
class AlternatingPolicy(SinksPolicy):
    """Sinks and a window: 64 keys in even layers, 128 in odd ones."""

    budget: int = 64

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        return SinksPolicy(self.budget * (1 + index % 2), self.num_sinks)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        layer, count = replace(shape, layers=1), shape.layers
        return sum(self.for_layer(index, count).nbytes(tokens, layer, at_once) for index in range(count))


@dataclass(frozen=True)
class SpreadPolicy(SnapKVPolicy):
    """SnapKV whose layers keep more of a prompt the wider its window's attention is spread."""

    def prefer(self, weights: Tensor) -> Tensor:
        spread = weights.sum(dim=2)
        spread = spread / spread.sum(dim=-1, keepdim=True)
        return torch.special.entr(spread).sum(dim=-1).exp().mean(dim=1)

    def allocate(self, stats: Sequence[LayerStats], shape: CacheShape) -> Sequence[int]:
        columns, preferences = zip(*stats, strict=True)
        return split_budget(
            self.num_tokens * shape.layers, preferences, columns, self.window + self.num_sinks
        )


PAGE = Path(__file__).parents[3] / "docs" / "extending" / "policy.md"


def load_page() -> types.ModuleType:
    """Return a module with the classes of the page about new policies."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL))
    tree = ast.parse(code)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)]
    module = types.ModuleType("extending_policy")
    sys.modules[module.__name__] = module
    exec(compile(tree, str(PAGE), "exec"), module.__dict__)  # noqa: S102 - a page of this repository
    return module


page = load_page()
BY_LAYER = {
    "alternating": AlternatingPolicy,
    "elsewhere": ElsewherePolicy,
    "spread": SpreadPolicy,
    "tail": page.TailPolicy,
    "widening": page.WideningPolicy,
}

SCORES = ((0.9, 0.1, 0.2, 0.3), (0.0, 0.5, 0.1, 0.2))
"""Retrieval scores of the heads of a tiny Llama. At a share of 0.5, its first head of each layer keeps all
tokens."""


def register_maps(architecture: str, sizes: dict[int, tuple[int, int]]) -> str:
    """Register random maps of KVzap, and return their digest. `sizes` has key heads and width by layer.

    Half of their scores are above 0.
    """
    generator = torch.Generator().manual_seed(0)
    maps = {
        layer: torch.randn(heads, width + 1, generator=generator) / width**0.5
        for layer, (heads, width) in sizes.items()
    }
    for table in maps.values():
        table[:, -1] = 0
    return KVzapWeights(maps, architecture, ()).register()


SMALL_SNAPKV = make("snapkv", budget=12, window=4, num_sinks=2)
MAPS = register_maps("llama-2-4-32-64", dict.fromkeys(range(2), (2, 32)))
"""Maps of KVzap for a tiny Llama."""
SMALL = {
    "alternating": {"budget": 8, "num_sinks": 2},
    "adakv": {"budget": 12, "window": 4, "num_sinks": 2},
    "cake": {"budget": 12, "window": 4, "num_sinks": 2},
    "expected_attention": {"budget": 12, "window": 4, "num_sinks": 2, "future": 16},
    "keydiff": {"budget": 12, "window": 4, "num_sinks": 2},
    "kvzap": {"budget": 12, "window": 6, "num_sinks": 2, "threshold": 0.0, "weights": MAPS},
    "kvzip": {"budget": 12, "window": 4, "num_sinks": 2, "chunk": 16, "instruction": (3, 4)},
    "pyramidkv": {"budget": 12, "window": 4, "num_sinks": 2},
    "task_kv": {"budget": 24, "window": 4, "num_sinks": 2, "recent": 5, "kernel": 3},
    "tova": {"budget": 12},
    "chunks": {"budget": 16, "chunk_size": 2, "local_chunks": 3, "store": "disk"},
    "hip": {"budget": 16, "chunk_size": 2, "local_chunks": 3, "store": "cpu"},
    "longheads": {"budget": 24, "chunk_size": 4, "store": "model"},
    "quest": {"budget": 16, "chunk_size": 2, "local_chunks": 3, "store": "model"},
    "elsewhere": {"stores": tuple(TableStore() for _ in range(3)), "block": 4},
    "flexprefill": {"policy": SMALL_SNAPKV, "block": 4, "gamma": 0.6, "min_budget": 4},
    "full": {},
    "duo": {"num_sinks": 2, "recent": 6, "scores": SCORES},
    "h2o": {"budget": 12, "recent": 5, "num_sinks": 2, "interval": 3},
    "recycled": {"budget": 12, "stride": 4, "num_sinks": 2},
    "refreshkv": {"budget": 8, "stride": 4, "num_sinks": 2, "similarity": 0.5},
    "sinks": {"budget": 8, "num_sinks": 2},
    "snapkv": {"budget": 12, "window": 4, "num_sinks": 2},
    "spread": {"budget": 12, "window": 4, "num_sinks": 2},
    "tail": {"budget": 8},
    "widening": {"budget": 8},
    "window": {"budget": 8},
    "zipvl": {"budget": 12, "window": 4, "num_sinks": 2, "probes_last": 6, "probes_random": 5},
}
"""Sizes of all policies of the tests at which much is evicted after 40 tokens."""


def make_for(model, name: str, **fields) -> ContextPolicy:
    """Return a policy with these fields; `duo` and `kvzap` get random weights, `longheads` a small budget."""
    if name == "duo" and "scores" not in fields:
        config = model.config.get_text_config(decoder=True)
        count = sum(layer.attends and layer.window is None for layer in get_layer_types(config))
        generator = torch.Generator().manual_seed(0)
        fields["scores"] = torch.rand(count, config.num_attention_heads, generator=generator).tolist()
    if name == "kvzap" and "weights" not in fields:
        width = model.config.get_text_config(decoder=True).hidden_size
        sizes = {index: (heads, width) for index, (heads, _) in find_rotation(model).sizes.items()}
        fields["weights"] = register_maps(architecture(model), sizes)
    if name == "longheads" and not fields:
        fields["budget"] = 1024  # the default needs a larger window than that of tiny models
    return make(name, **fields)


ALLOCATING = (SpreadPolicy, CAKEPolicy)
"""Policies that divide a joint budget among the layers."""


@contextmanager
def record_budgets() -> Iterator[list[Sequence[int]]]:
    """Record the budgets that policies set for their layers, one list per layer and call."""
    budgets = []

    def recorder(allocate):
        def record(self, stats, shape):
            budgets.append(allocate(self, stats, shape))
            return budgets[-1]

        return record

    with pytest.MonkeyPatch.context() as patch:
        for policy in ALLOCATING:
            patch.setattr(policy, "allocate", recorder(policy.allocate))
        yield budgets


@contextmanager
def replay_budgets(budgets: list[Sequence[int]]) -> Iterator[None]:
    """Use these budgets first, and then those of the policy.

    The rows of a batch share budgets, so a row read alone must use the budgets of the batch.
    """
    pending = iter(budgets)

    def replayer(allocate):
        return lambda self, stats, shape: next(pending, None) or allocate(self, stats, shape)

    with pytest.MonkeyPatch.context() as patch:
        for policy in ALLOCATING:
            patch.setattr(policy, "allocate", replayer(policy.allocate))
        yield


@torch.no_grad()
def read(model, cache, ids, cuts=None, mask=None):
    """Return the logits of a text read in pieces that end at `cuts`."""
    ends = [*(cuts or []), ids.shape[1]]
    out, begin = [], cache.get_seq_length() if mask is not None else 0
    for end in ends:
        options = {} if mask is None else {"attention_mask": mask[:, :end]}
        out.append(model(ids[:, begin:end], cache=cache, **options).logits)
        begin = end
    return torch.cat(out, dim=1)


def close(left, right):
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def pad(ids, by):
    """Return a batch of the first row, shortened and padded on the left, and the second, and its mask."""
    length = ids.shape[1]
    padded = torch.cat([torch.zeros(1, by, dtype=torch.long), ids[:1, : length - by]], dim=1)
    mask = torch.arange(length) >= torch.tensor([[by], [0]])
    return torch.cat([padded, ids[1:2]]), mask.long()
