"""The demonstration: two agents alike but for their memory learn the same task, and only one can."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class DemoOptions:
    """Train a policy without memory and one with to recall cards; again goes on or shows the result."""

    memory: str = "hcam"
    """The memory to show."""
    total_steps: int | None = None
    """Environment steps of each; default: the recipe's."""
    seed: int = 0
    """Source of all randomness."""
    jobs: int = 2
    """Processes at once."""
    out: Path = Path("runs/demo")
    """Directory of both runs and of curve.png."""

    def check(self) -> None:
        """Raise ValueError on an unknown memory or an impossible number."""
        from scrubjay.memory import make_config

        make_config(self.memory)
        if self.memory == "none":
            raise ValueError("memory='none': that is the other contestant; choose one that remembers")
        if self.jobs < 1 or (self.total_steps is not None and self.total_steps < 1):
            raise ValueError(f"jobs={self.jobs}, total_steps={self.total_steps}: both must be at least 1")


def run(words: Sequence[str]) -> int:
    """`scrubjay demo`: train both, draw both, say what is to be seen; return the exit code."""
    options = parse(DemoOptions, words, "scrubjay demo")
    with bad_input():
        options.check()
    from scrubjay.experiments.launching.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import with_memory
    from scrubjay.experiments.recipes.tasks import recall_demo
    from scrubjay.experiments.reports.curves import plot_runs

    base = dataclasses.replace(recall_demo(), seed=options.seed)
    if options.total_steps is not None:
        base = dataclasses.replace(base, total_steps=options.total_steps)
    names = ["none", options.memory]
    runs = [prepare(with_memory(base, name), options.out / f"{name}-s{options.seed}") for name in names]
    totals = " and ".join(dict.fromkeys(f"{run.config.total_steps:,}" for run in runs))
    print(f"{base.recipe}: {totals} steps each for {' and '.join(names)}, in {options.out}", flush=True)
    try:
        run_in_processes(runs, options.jobs)
    except Interrupted as stop:
        print("\nstopped; the same command goes on")
        return stop.exit_code
    with bad_input():  # of a run's files, which may be of long ago
        curve = plot_runs(runs, options.out / "curve.png")
        told = ("success", "success_low", "success_high", "seconds")
        rows = [tuple(run.result[name] for name in told) for run in runs]
    print(
        "\nEach step deals a card; the task is to name the suit of the card dealt "
        f"{base.env.kwargs['k']} steps ago.\n"
        f"Without memory at most {base.success_without_memory:.0%} of the answers can be right; over "
        f"{base.eval_episodes} new episodes the trained policies were right in"
    )
    for name, run, (success, low, high, seconds) in zip(names, runs, rows, strict=True):
        told = f"[{low:.2f}, {high:.2f}]   {seconds:.0f} s of training, {one_line(run.path)}"
        print(f"  {name:<6} {success:.2f}  {told}")
    print(one_line(f"curve: {curve}"))
    return 0
