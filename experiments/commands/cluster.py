"""The commands that need Ray: `scrubjay launch` and `scrubjay sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import UseAppendAction

from scrubjay.experiments.cli.arguments import parse, parse_known, wants_help
from scrubjay.experiments.cli.failures import UsageError, bad_input
from scrubjay.experiments.commands.options import Logger, Quiet, RaySizes, Trust


@dataclass(frozen=True)
class LaunchOptions(RaySizes):
    """Train on a Ray cluster, as a job on its head node, and follow the output.

    The recipe is followed by flags of train; scrubjay launch RECIPE --help lists them. Ctrl-C leaves the job
    running. All paths, such as the run of `--init-from`, are paths on the head node.
    """

    address: str | None = None
    """Address of the cluster's dashboard, such as http://HEAD:8265."""
    detach: bool = False
    """Return at once, without following the output."""
    run_dir: str | None = None
    """Directory of the run; default: a new folder in ~/scrubjay."""
    resume: str | None = None
    """Directory of a run to continue, instead of a recipe."""
    total_steps: int | None = None
    """Total of training steps."""
    quiet: Quiet = False
    logger: Logger = None
    trust: Trust = False


def launch(argv: Sequence[str]) -> int:
    """`scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of train]`."""
    if not argv or argv[0] in ("-h", "--help"):
        parse(LaunchOptions, ["--help"], "scrubjay launch RECIPE")
    options, remaining = parse_known(LaunchOptions, argv)
    # Validate the flags here, instead of in a job that starts minutes later.
    if any(word.partition("=")[0] == "--engine" for word in remaining):
        raise UsageError("launch always uses --engine ray; omit --engine")
    from scrubjay.experiments.launch.ray_job import follow, submit
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.runs.config import default_path

    recipe, flags = remaining[:1], remaining[1:]
    if options.total_steps is not None:
        flags += ["--total-steps", str(options.total_steps)]
    ray = options.ray_options()
    config = None
    if recipe and options.resume is None:
        config = override(recipe[0], flags, command="launch", options_type=LaunchOptions)
    if options.address is None:
        raise UsageError("launch needs --address http://HEAD:8265, the address of the cluster's dashboard")
    if options.resume is not None:
        if options.run_dir is not None:
            raise UsageError("--resume already names the run directory; omit --run-dir")
        if remaining:
            raise UsageError(
                f"unexpected argument {remaining[0]!r}: a resumed run uses its own config; omit it"
            )
        run_dir = options.resume
        command = ["resume", run_dir, *flags, *(["--trust"] * options.trust)]
    else:
        if config is None:
            raise UsageError("launch needs a recipe, or --resume DIR")
        if options.trust:
            raise UsageError("--trust requires --resume DIR: a new run trusts its own environment")
        with bad_input():
            config.check(ray)
        run_dir = options.run_dir or f"~/scrubjay/{default_path(config).name}"
        command = ["train", *recipe, "--run-dir", run_dir, *flags]
    sizes = ["--num-env-runners", str(ray.num_env_runners), "--num-learners", str(ray.num_learners)]
    output_flags = ["--quiet"] * options.quiet + (["--logger", options.logger] if options.logger else [])
    with bad_input():
        client, job = submit(options.address, [*command, "--engine", "ray", *sizes, *output_flags])
    print(f"job {job} at {options.address}, run directory on the head node: {run_dir}", flush=True)
    if options.detach:
        print(_follow_hint(job, options.address))
        return 0
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\njob {job} keeps running; {_follow_hint(job, options.address)}", flush=True)
        return 130
    except ConnectionError as error:
        raise UsageError(f"{error}; {_follow_hint(job, options.address)}") from error


def _follow_hint(job: str, address: str) -> str:
    at = f"--address {address} {job}"
    return f"follow: ray job logs --follow {at}    stop: ray job stop {at}"


@dataclass(frozen=True)
class SweepOptions:
    """Train a recipe with every combination of settings.

    The recipe is followed by flags of train; scrubjay sweep RECIPE --help lists them. Run the same command
    with --trust to continue an interrupted sweep. Results are written to table.md.
    """

    param: UseAppendAction[tuple[str, ...]] = ()
    """Flag of train and its values, as NAME=V1,V2. NAME is a flag such as memory, seed,
    learner.learning-rate or set.corridor_length."""
    out: Path = Path("runs/sweep")
    """Directory of all runs; on a cluster it must be on a shared file system."""
    jobs: int | None = None
    """Number of trials in parallel; default: one per CPU."""
    early_stopping: Literal["none", "asha"] = "none"
    """Rule that ends weak trials early: none, or ASHA. It compares only trials of the same
    seed, task and memory."""
    compare_memories: bool = False
    """Let early stopping also compare trials of different memories, or of different methods of a team."""
    address: str | None = None
    """Address of the Ray cluster's head as host:port; default: RAY_ADDRESS if set, else this machine."""
    trust: bool = False
    """Trust the files of an interrupted sweep in --out: Ray Tune pickles them, and loading executes code."""


def sweep(argv: Sequence[str]) -> int:
    """`scrubjay sweep RECIPE --param NAME=V1,V2 [--param ...] [--out DIR] [--jobs N] [flags of train]`."""
    if not argv or argv[0] in ("-h", "--help"):
        parse(SweepOptions, ["--help"], "scrubjay sweep RECIPE")
    options, flags = parse_known(SweepOptions, argv[1:])
    if wants_help(flags):
        from scrubjay.experiments.recipes.overrides import override

        override(argv[0], flags, command="sweep", options_type=SweepOptions)
    from scrubjay.experiments.launch.sweep import Sweep, parse_param, run_sweep

    if not options.param:
        raise UsageError("sweep needs at least one --param NAME=V1,V2")
    with bad_input():
        params = tuple(map(parse_param, options.param))
        sweep = Sweep(argv[0], params, tuple(flags), options.early_stopping, options.compare_memories)
        return run_sweep(sweep, options.out, options.address, options.jobs, options.trust)
