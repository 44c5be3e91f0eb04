"""`scrubjay demo`: train two policies on a memory task, with and without memory, and compare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.terminal import bad_input
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.progress import GracefulInterrupt


@dataclass(frozen=True)
class DemoOptions:
    """Train policies with and without memory to recall cards. Run again to continue or to show the result."""

    memory: str = "hcam"
    """Memory to demonstrate."""
    total_steps: int | None = None
    """Environment steps per policy; default: set by the recipe."""
    seed: int = 0
    """Random seed."""
    jobs: int = 2
    """Number of parallel processes."""
    out: Path = Path("runs/demo")
    """Directory for both runs and curve.png."""

    def check(self) -> None:
        """Raise ValueError on an unknown memory or an invalid number."""
        from scrubjay.memory import make_config

        make_config(self.memory)
        if self.memory == "none":
            raise ValueError("memory='none': this is the baseline; choose another memory")
        if self.jobs < 1 or (self.total_steps is not None and self.total_steps < 1):
            raise ValueError(f"jobs={self.jobs}, total_steps={self.total_steps}: both must be at least 1")


def run(argv: Sequence[str]) -> int:
    """`scrubjay demo`: train both policies, plot and print the results; return the exit code."""
    options = parse(DemoOptions, argv, "scrubjay demo")
    with bad_input():
        options.check()
    from scrubjay.experiments.launch.parallel import prepare, run_in_processes
    from scrubjay.experiments.recipes import with_memory
    from scrubjay.experiments.recipes.tasks import recall_demo
    from scrubjay.experiments.viz.curves import plot_runs

    base = dataclasses.replace(recall_demo(), seed=options.seed)
    if options.total_steps is not None:
        base = dataclasses.replace(base, total_steps=options.total_steps)
    names = ["none", options.memory]
    runs = [prepare(with_memory(base, name), options.out / f"{name}-s{options.seed}") for name in names]
    totals = " and ".join(dict.fromkeys(f"{run.config.total_steps:,}" for run in runs))
    print(f"{base.recipe}: {totals} steps each for {' and '.join(names)}, in {options.out}", flush=True)
    try:
        run_in_processes(runs, options.jobs)
    except GracefulInterrupt as stop:
        print("\nstopped; run the same command again to continue")
        return stop.exit_code
    with bad_input():  # a run's files may be from an old version
        curve = plot_runs(runs, options.out / "curve.png")
        metric_names = ("success", "success_low", "success_high", "seconds")
        rows = [tuple(run.result[name] for name in metric_names) for run in runs]
    print(
        "\nEach step shows a card; the task is to name the suit of the card shown "
        f"{base.env.kwargs['k']} steps ago.\n"
        f"Without memory the best possible accuracy is {base.success_without_memory:.0%}. Accuracy of the "
        f"trained policies over {base.eval_episodes} new episodes:"
    )
    for name, run, (success, low, high, seconds) in zip(names, runs, rows, strict=True):
        metric_names = f"[{low:.2f}, {high:.2f}]   {seconds:.0f} s of training, {one_line(run.path)}"
        print(f"  {name:<6} {success:.2f}  {metric_names}")
    print(one_line(f"curve: {curve}"))
    return 0
