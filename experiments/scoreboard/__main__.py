"""Scoreboard: train and evaluate all contenders on all tasks with all seeds, and write a report.

    make scoreboard ARGS="--out runs/scoreboard --jobs 2"

Each run has its own process with one thread. Its row is appended to `rows.jsonl`; a run that crashes has a
row with its error. Ctrl-C stops, and the same command continues. Further tasks, contenders and seeds can be
added. `report.md` is written at the end.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence

import tyro

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import read_lines, release_folders, write_atomically
from scrubjay.experiments.measurements import Records, check_row, header, prepare_results_dir
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.scoreboard.grid import Options, run_cells
from scrubjay.experiments.scoreboard.report import FIELDS, make_report

_MODULE = "scrubjay.experiments.scoreboard"


def main(words: Sequence[str] | None = None) -> int:
    """Run the scoreboard and write its report; return the exit code."""
    options = tyro.cli(Options, description=__doc__, args=words)
    command = shlex.join(["python", "-P", "-m", _MODULE, *(sys.argv[1:] if words is None else words)])
    file = options.out / "rows.jsonl"
    try:
        if not options.report:
            options.check()
            prepare_results_dir(options.out, dataclasses.asdict(options.settings))
            records = Records(file, FIELDS)
            if options.retry:
                records.keep(lambda row: row["status"] != "failed")
            run_cells(options, records)
        rows = [check_row(row, FIELDS) for row in read_lines(file)]
        if not rows:
            raise ValueError(f"{file} has no rows; run the scoreboard first, without --report")
        write_atomically(options.out / "report.md", make_report(rows, header(command)))
        print(one_line(options.out / "report.md"))
        return 0
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command to continue")
        return stop.exit_code
    except (ValueError, OSError) as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        return 2
    finally:
        release_folders()


if __name__ == "__main__":
    sys.exit(main())
