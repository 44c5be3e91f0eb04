"""Adapter for `revisions --base 03307f0`: the names of today for that commit, then the cases of today."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    from scrubjay.experiments.bench import throughput

    throughput.ScrubjayTrainer = throughput.Ours  # pyright: ignore[reportAttributeAccessIssue]
    runpy.run_path(str(Path(__file__).with_name("revision_cases.py")), run_name="__main__")
