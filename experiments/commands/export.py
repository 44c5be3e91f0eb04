"""`scrubjay export` and `scrubjay results`: write a policy to a file or a folder, and runs to a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.cli.untrusted_text import one_line, table
from scrubjay.experiments.commands.options import Checkpoint, Trust


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
    checkpoint: Checkpoint = "latest"
    trust: Trust = False


def run(argv: Sequence[str]) -> int:
    """`scrubjay export RUN [--out FILE] [--onnx | --pretrained]`."""
    options = parse(ExportOptions, argv, "scrubjay export")
    if options.onnx and options.pretrained:
        raise UsageError("--onnx and --pretrained cannot be combined; give one of them")
    from scrubjay.experiments.commands.loading import load_agent, untrusted_limits
    from scrubjay.experiments.export import export_onnx, export_pretrained, export_torch
    from scrubjay.experiments.runs.run import Run

    with untrusted_limits(options.trust), bad_input():
        if options.pretrained:
            trained_run = Run.load(options.run, options.trust, options.checkpoint)
            out = options.out or trained_run.path / "pretrained"
            kind = export_pretrained(trained_run, out)
            result = f"weights match the policy; load with {kind}.from_pretrained({str(out)!r})"
        else:
            trained_run, _ = load_agent(options.run, options.trust, options.checkpoint)
            out = options.out or trained_run.path / ("policy.onnx" if options.onnx else "policy.pt2")
            difference = (export_onnx if options.onnx else export_torch)(trained_run.policy, out)
            result = f"outputs match the policy up to {difference:.1e}"
    print(one_line(f"{out}: reloaded; {result}"))
    return 0


@dataclass(frozen=True)
class ResultsOptions:
    """Tabulate runs: one row per run with its config, seed, status and scores.

    Without --csv the table has the most important columns. Runs.load(FOLDER).to_pandas() returns all columns
    in Python.
    """

    folders: Positional[tuple[Path, ...]]
    """Run directories, or folders with run directories in them."""
    csv: Annotated[tuple[Path, ...] | None, arg(metavar="[PATH]")] = None
    """Write all columns as CSV, to a file whose name ends in .csv, or to the standard output."""
    trust: Annotated[bool, arg(help="Also read runs with links to other files.")] = False


def results(argv: Sequence[str]) -> int:
    """`scrubjay results FOLDER [FOLDER ...] [--csv [FILE]]`."""
    options = parse(ResultsOptions, argv, "scrubjay results")
    if not options.folders:
        raise UsageError("results needs at least one folder, before --csv")
    if len(options.csv or ()) > 1 or any(file.suffix != ".csv" for file in options.csv or ()):
        names = " ".join(map(str, options.csv or ()))
        raise UsageError(f"--csv {names}: expected one file whose name ends in .csv, or nothing")
    from scrubjay.experiments.files import write_atomically
    from scrubjay.experiments.run_table import Runs

    with bad_input():
        runs = Runs.load(*options.folders, trust=options.trust)
        if options.csv:
            write_atomically(options.csv[0], runs.to_csv())
            print(one_line(f"{options.csv[0]}: {len(runs.rows)} runs"))
        elif options.csv is not None:
            print(runs.to_csv(), end="")
        else:
            print(_format_rows(runs.rows))
    return 0


def _format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Return the most important columns of a table of runs as text, with errors and notes below it."""
    from scrubjay.experiments.runs.metrics import WINDOW

    columns = {"run": "run", "status": "status", "seed": "seed", "step": "step"}
    columns |= {"success": "success", "episodic_return": "return"}
    if any("best" in row for row in rows):
        columns |= {"best": "best", "lowest_after_solved": "lowest after solved", "lost": "lost"}
    lines = [tuple(columns.values())]
    for row in rows:
        cells = {**row, "lost": {0: "no", 1: "yes"}.get(row.get("lost", ""), "")}
        values = [cells.get(name, "") for name in columns]
        lines.append(tuple(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    notes = [one_line(f"{row['run']}: {row['error']}") for row in rows if row.get("error")]
    if count := sum(row.get("evaluations") == 0 for row in rows):
        notes.append(
            f"Best and lowest of {count} run{'s' * (count > 1)} without evaluations are means over the last "
            f"{WINDOW} training episodes. Train with --eval-every N to evaluate during training."
        )
    return "\n".join([table(lines), *notes])
