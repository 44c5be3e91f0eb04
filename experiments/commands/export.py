"""`scrubjay export`: a trained policy for others: one step of it as a program, or its weights in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import UsageError, parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class ExportOptions:
    """Write one step of a trained policy, any batch size, for programs without this package.

    With --pretrained write its weights instead, for programs with it: `Policy.from_pretrained(FOLDER)`.
    """

    run: Positional[Path]
    """The run's directory."""
    out: Path | None = None
    """File to write; default: policy.pt2, or policy.onnx, in the run; of --pretrained the folder, default
    pretrained."""
    onnx: bool = False
    """Write ONNX instead of torch.export's format."""
    pretrained: bool = False
    """Write weights (safetensors), config.json and a model card; of teams, too."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""


def run(words: Sequence[str]) -> int:
    """`scrubjay export RUN [--out FILE] [--onnx | --pretrained]`."""
    options = parse(ExportOptions, words, "scrubjay export")
    if options.onnx and options.pretrained:
        raise UsageError("--onnx and --pretrained are two exports: give one of them")
    return _write_pretrained(options) if options.pretrained else _write_step(options)


def _write_step(options: ExportOptions) -> int:
    from scrubjay.experiments.commands.loading import guarded, load_agent
    from scrubjay.experiments.reports.export import export_onnx, export_torch

    with guarded(options.trust), bad_input():
        trained, _ = load_agent(options.run, options.trust)
        policy = trained.policy
        out = options.out or trained.path / ("policy.onnx" if options.onnx else "policy.pt2")
        difference = (export_onnx if options.onnx else export_torch)(policy, out)
    print(one_line(f"{out}: reloaded, and equal to the policy up to {difference:.1e}"))
    return 0


def _write_pretrained(options: ExportOptions) -> int:
    from scrubjay.experiments.commands.loading import guarded
    from scrubjay.experiments.reports.pretrained import export_pretrained
    from scrubjay.experiments.run import Run

    with guarded(options.trust), bad_input():
        trained = Run.load(options.run, options.trust)
        out = options.out or trained.path / "pretrained"
        kind = export_pretrained(trained, out)
    told = f"{out}: reloaded, and equal to the policy; {kind}.from_pretrained({str(out)!r}) loads it"
    print(one_line(told))
    return 0
