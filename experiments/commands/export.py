"""`scrubjay export`: one step of a trained policy, for programs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class ExportOptions:
    """Write one step of a trained policy, any batch size, for programs without this package."""

    run: Positional[Path]
    """The run's directory."""
    out: Path | None = None
    """File to write; default: policy.pt2, or policy.onnx, in the run."""
    onnx: bool = False
    """Write ONNX instead of torch.export's format."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""


def run(words: Sequence[str]) -> int:
    """`scrubjay export RUN [--out FILE] [--onnx]`."""
    options = parse(ExportOptions, words, "scrubjay export")
    from scrubjay.experiments.commands.loading import guarded, load_agent
    from scrubjay.experiments.reports.export import export_onnx, export_torch

    with guarded(options.trust), bad_input():
        trained, _ = load_agent(options.run, options.trust)
        policy = trained.policy
        out = options.out or trained.path / ("policy.onnx" if options.onnx else "policy.pt2")
        difference = (export_onnx if options.onnx else export_torch)(policy, out)
    print(one_line(f"{out}: reloaded, and equal to the policy up to {difference:.1e}"))
    return 0
