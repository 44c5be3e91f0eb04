"""Progress and findings of a run of the fuzzer, in a folder. Ctrl-C loses nothing but the try in progress."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .child import Outcome
from .laws import Fault, name_of
from .plan import Plan, size_of
from .targets import TARGETS

MAX_REPRODUCER_BYTES = 1 << 20
"""Larger reproducers are not copied; their command makes them again."""


@dataclass
class Progress:
    """Numbers of a run."""

    seed: int = 0
    tries: dict[str, int] = field(default_factory=dict)
    """Number of tries by kind, which is also the number of the next try."""
    acceptances: dict[str, int] = field(default_factory=dict)
    """Number of tries by kind that read the sample without an error."""
    seconds: float = 0.0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Law, target, example, command and count of each finding, by the name of its folder."""


def load_progress(folder: Path, seed: int) -> Progress:
    """Return the progress of this seed in a folder. Raises ValueError if the folder is of another seed."""
    file = folder / "progress.json"
    if not file.exists():
        return Progress(seed)
    progress = Progress(**json.loads(file.read_text("utf-8")))
    if progress.seed != seed:
        raise ValueError(
            f"{folder} has the progress of seed {progress.seed}; pass another --out or this seed"
        )
    return progress


def save_progress(folder: Path, progress: Progress) -> None:
    """Replace the file of the progress in one step."""
    new = folder / "progress.json.new"
    new.write_text(json.dumps(dataclasses.asdict(progress), indent=1), "utf-8")
    os.replace(new, folder / "progress.json")


def add_finding(
    folder: Path, progress: Progress, plan: Plan, number: int, fault: Fault, outcome: Outcome, here: Path
) -> bool:
    """Count a fault. Save its sample and output if it is new; return True then."""
    target = TARGETS[plan.target]
    name = name_of(target, fault)
    if name in progress.findings:
        progress.findings[name]["count"] += 1
        return False
    progress.findings[name] = {
        "law": fault.law,
        "target": target.name,
        "sample": plan.sample,
        "signature": fault.signature,
        "detail": fault.detail[:1000],
        "steps": [dataclasses.asdict(step) for step in plan.steps],
        "command": command(progress.seed, plan.kind, number),
        "count": 1,
    }
    place = folder / "findings" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    text = json.dumps({**progress.findings[name], "outcome": dataclasses.asdict(outcome)}, indent=1)
    (place / "finding.json").write_text(text, "utf-8", errors="surrogateescape")
    for kind in ("traceback",):
        with contextlib.suppress(OSError):
            shutil.copy(here.parent / kind, place / kind)
    sample = here / plan.name
    is_copied = os.path.lexists(sample) and not sample.is_symlink() and size_of(sample) < MAX_REPRODUCER_BYTES
    if is_copied:
        with contextlib.suppress(OSError, shutil.Error):
            if sample.is_dir():
                shutil.copytree(sample, place / "sample", symlinks=True, ignore=_ignore_special)
            elif sample.is_file():
                shutil.copy(sample, place / f"sample{sample.suffix}", follow_symlinks=False)
    return True


def _ignore_special(folder: str, names: list[str]) -> list[str]:
    paths = {name: Path(folder, name) for name in names}
    return [
        name
        for name, path in paths.items()
        if not path.is_symlink() and not path.is_dir() and not path.is_file()
    ]


def command(seed: int, kind: str, number: int) -> str:
    """Return the command that repeats a try."""
    return f"make fuzz ARGS={shlex.quote(f'--seed {seed} --only {kind} --try {number}')}"


def format_table(progress: Progress) -> str:
    """Return tables of tries and findings in Markdown."""
    rows = ["| kind of input | tries | accepted | refused |", "| --- | ---: | ---: | ---: |"]
    for kind, count in sorted(progress.tries.items()):
        count_accepted = progress.acceptances.get(kind, 0)
        rows.append(f"| {kind} | {count:,} | {count_accepted:,} | {count - count_accepted:,} |")
    total, total_accepted = sum(progress.tries.values()), sum(progress.acceptances.values())
    rows.append(f"| all | {total:,} | {total_accepted:,} | {total - total_accepted:,} |")
    return "\n".join([*rows, "", *_finding_rows(progress.findings.values())])


def _finding_rows(findings: Iterable[dict[str, Any]]) -> list[str]:
    rows = [
        " | ".join(
            (
                "",
                one["law"],
                f"`{one['target'].split(' --')[0]}`",
                one["signature"].replace("|", "/"),
                f"{one['count']} |",
            )
        ).strip()
        for one in findings
    ]
    return (
        ["| law | target | fault | times |", "| --- | --- | --- | ---: |", *sorted(rows)]
        if rows
        else ["No fault."]
    )
