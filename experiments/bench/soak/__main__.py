"""Soak: two processes in one run directory, a bank of a million records, segments of 100,000 steps.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.soak --out runs/soak

The modules of this folder describe the three parts and what each one checks. A part stops with an error at
the first loss. The same command resumes an interrupted soak. It needs Linux, two cores for about two hours,
and 3 GB of disk in `--out`. Smaller sizes are options. Writes `soak.md` with the tables. Options: `--help`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

import tyro

from scrubjay.experiments.bench.soak import SoakError
from scrubjay.experiments.bench.soak.bank import Killer
from scrubjay.experiments.bench.soak.runs import run_contest
from scrubjay.experiments.bench.soak.segments import run_segments
from scrubjay.experiments.bench.soak.tables import (
    Soak,
    describe_bank,
    describe_runs,
    describe_segments,
    is_fault,
)
from scrubjay.experiments.files import release_folders, write_atomically
from scrubjay.experiments.measurements import header, prepare_results_dir


def main(words: Sequence[str] | None = None) -> int:
    """Run the soak and print the tables; return the exit code."""
    soak = tyro.cli(Soak, description=__doc__, args=words)
    arguments = sys.argv[1:] if words is None else words
    command = shlex.join(["python", "-P", "-m", "scrubjay.experiments.bench.soak", *arguments])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes to start
    try:
        prepare_results_dir(soak.out, {name: vars(getattr(soak, name)) for name in ("runs", "bank")})
        sections = []
        if "runs" in soak.parts:
            rows, growths = run_contest(soak.runs, soak.out / "runs")
            sections.append(describe_runs(soak, rows, growths))
        if "bank" in soak.parts:
            sections.append(describe_bank(soak, Killer(soak.bank, soak.out / "bank").run()))
        errors = []
        if "segments" in soak.parts:
            rows = run_segments(soak.segments, soak.out / "segments")
            errors = [row for row in rows if is_fault(row)]
            sections.append(describe_segments(soak, rows))
        text = "\n\n".join(["# Soak", header(command), *sections]) + "\n"
        write_atomically(soak.out / "soak.md", text)
        print(text)
        return 1 if errors else 0
    except KeyboardInterrupt:
        print("\nstopped; run the same command to resume")
        return 130
    except SoakError as error:
        print(f"lost: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        release_folders()


if __name__ == "__main__":
    sys.exit(main())
