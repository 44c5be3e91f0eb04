"""`scrubjay export`: export one step of a trained policy as a program, or its weights as a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.commands.options import Trust


@dataclass(frozen=True)
class ExportOptions:
    """Export one step of a trained policy as a program that runs without Scrubjay, for any batch size.

    With --pretrained, export the weights of the policy instead, for `Policy.from_pretrained(FOLDER)`.
    """

    run: Positional[Path]
    """Run directory."""
    out: Path | None = None
    """Output file; default: policy.pt2 or policy.onnx in the run directory. With --pretrained the output
    folder; default: pretrained in the run directory."""
    onnx: bool = False
    """Export to ONNX instead of torch.export's format."""
    pretrained: bool = False
    """Export weights (safetensors), config.json and a model card; also supports teams."""
    trust: Trust = False


def run(argv: Sequence[str]) -> int:
    """`scrubjay export RUN [--out FILE] [--onnx | --pretrained]`."""
    options = parse(ExportOptions, argv, "scrubjay export")
    if options.onnx and options.pretrained:
        raise UsageError("--onnx and --pretrained cannot be combined; give one of them")
    from scrubjay.experiments.commands.loading import load_agent, memory_guard
    from scrubjay.experiments.export import export_onnx, export_pretrained, export_torch
    from scrubjay.experiments.runs.run import Run

    with memory_guard(options.trust), bad_input():
        if options.pretrained:
            trained_run = Run.load(options.run, options.trust)
            out = options.out or trained_run.path / "pretrained"
            kind = export_pretrained(trained_run, out)
            result = f"weights match the policy; load with {kind}.from_pretrained({str(out)!r})"
        else:
            trained_run, _ = load_agent(options.run, options.trust)
            out = options.out or trained_run.path / ("policy.onnx" if options.onnx else "policy.pt2")
            difference = (export_onnx if options.onnx else export_torch)(trained_run.policy, out)
            result = f"outputs match the policy up to {difference:.1e}"
    print(one_line(f"{out}: reloaded; {result}"))
    return 0
