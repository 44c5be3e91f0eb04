"""Page of results about all causal language models under all context policies; `results.py` prints it."""

import re
import sys
import warnings
from pathlib import Path

import tiny
import transformers
from cases import BUDGET, LENGTH, ROUNDING, Outcome, find_outcome

from scrubjay.memory.context.cache import STATE_RESETTING_MODELS
from scrubjay.memory.context.layers.layer_types import get_layer_types
from scrubjay.memory.context.layers.rotation import find_rotation

PAGE = Path(__file__).parents[4] / "experiments" / "results" / "families.md"

_INTRODUCTION = """# Language models under context policies

The tables have all names in the mapping `AutoModelForCausalLM` of transformers {version}, and some
variants of their configs. A tiny random model of each name reads two texts of {length} tokens. The budget
is {budget} tokens. The texts are read whole, in blocks, in steps, and with padding.

The outputs equal a definition that knows nothing of rotary positions. The definition is one forward pass
of the model's own eager attention without a cache. Only the attention mask and the position ids of this
pass are changed. The largest error allowed is {rounding:.0f} times the error of this pass in float32.

Policies do not apply to layers with a sliding window, chunked attention or recurrent states. A refused
model raises a ValueError with the reason when the cache is built. `load_model(under_policy=True)` raises
it before it reads the weights. The tests read texts without images.

The steps of the recurrent states of `zamba2` are at least `time_step_min` in a text read at once, but not
in single tokens. Its code in transformers has this difference, so transformers' own cache has it, too.
The tests set `time_step_min` to 1e-9. With the default of 0.001, logits with a standard deviation of 1.8
differ by up to 0.1 in the tiny model.

The tables have seven policies. `adakv`, `cake`, `duo`, `keydiff`, `kvzap`, `pyramidkv`, `task_kv`, `tova`
and `zipvl` serve the same models as `snapkv`, `expected_attention` the same as `sinks`, `refreshkv` the
same as `recycled`, and `flexprefill` the same as `full`.
`kvzip` serves the same as `snapkv`, without `jamba` and `zamba`, which restart their states.

The tests are `pytest tests/memory/context/suites -m ''`. The script
`PYTHONPATH=tests/memory/context python tests/memory/context/suites/results.py` prints this page.

| policies | names |
| --- | --- |
{counts}
"""
_TABLES = {
    "all": "Served by all policies",
    "some": "Served by some policies",
    "none": "Refused",
}


def make_page() -> str:
    """Return the text of the page."""
    rows: dict[str, list[str]] = {kind: [] for kind in _TABLES}
    for name in tiny.names():
        outcome = find_outcome(name)
        rows[kind_of(outcome)].append(make_row(name, outcome))
    counts = "\n".join(f"| {title.lower()} | {len(rows[kind])} |" for kind, title in _TABLES.items())
    sizes = {"length": LENGTH, "budget": BUDGET, "rounding": ROUNDING}
    parts = [_INTRODUCTION.format(version=transformers.__version__, counts=counts, **sizes)]
    for kind, title in _TABLES.items():
        head = (
            "| name | reason |" if kind == "none" else "| name | policies | layers, or reason of the others |"
        )
        line = "| --- | --- |" if kind == "none" else "| --- | --- | --- |"
        parts.append("\n".join([f"## {title}", "", head, line, *rows[kind]]) + "\n")
    return "\n".join(parts)


def kind_of(outcome: Outcome) -> str:
    """Return "all", "some" or "none"."""
    return "none" if not outcome.policies else "some" if outcome.reasons else "all"


def make_row(name: str, outcome: Outcome) -> str:
    """Return the row of a model."""
    reason = _shorten(next(iter(outcome.reasons.values()), ""))
    if not outcome.policies:
        return f"| {name} | {reason} |"
    policies = "all" if not outcome.reasons else ", ".join(f"`{policy}`" for policy in outcome.policies)
    return f"| {name} | {policies} | {reason or _describe_layers(name)} |"


def _shorten(reason: str) -> str:
    """Remove the name of the model and the advice from an error message."""
    reason = re.split(r"[:;] (?:use|correct) ", reason)[0]
    return re.sub(r"^(?!the )[\w-]+ (?=[a-z])", "", reason)


def _describe_layers(name: str) -> str:
    model = tiny.make(name)
    config = model.config.get_text_config(decoder=True)
    rotation, descriptions = find_rotation(model), []
    for layer_type, rotary in zip(get_layer_types(config), rotation.by_layer, strict=True):
        parts = []
        if layer_type.attends:
            kind = "full attention"
            if layer_type.window is not None:
                kind = f"{'chunks' if layer_type.is_chunked else 'window'} of {layer_type.window}"
            pairs = rotary.layout.pairs if rotary is not None else 0
            order = "interleaved " if rotary is not None and rotary.layout.is_interleaved else ""
            parts.append(f"{kind}, {pairs} {order}rotary pairs" if pairs else f"{kind}, without positions")
        parts += ["recurrent state"] * (layer_type.states > 0)
        descriptions.append(" and ".join(parts) or "no cache")
    text = "; ".join(dict.fromkeys(descriptions))
    if getattr(config, "attn_logit_softcapping", None):
        text += "; soft cap of scores"
    if any(key.rpartition(".")[2] in ("sinks", "attention_sink_bias") for key, _ in model.named_parameters()):
        text += "; learned sinks"
    if config.model_type in STATE_RESETTING_MODELS:
        text += "; reads a prompt in one call and later tokens one by one"
    return text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    sys.stdout.write(make_page())
