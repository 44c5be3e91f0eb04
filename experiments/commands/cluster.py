"""The commands that need Ray, `scrubjay launch` and `scrubjay sweep`, and parsing of Ray's flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scrubjay.experiments.cli.arguments import UsageError, choose, take_flag
from scrubjay.experiments.cli.terminal import bad_input, parse_integer
from scrubjay.experiments.explain import explain
from scrubjay.experiments.runs import loggers
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster


def launch(argv: Sequence[str]) -> int:
    """`scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of train]`."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of "
            "train]\n"
            "       scrubjay launch --resume DIR --address http://HEAD:8265 [--total-steps N] [--detach] "
            "[--trust]\n"
            "                       [--num-env-runners N] ...\n\n"
            "Train on a Ray cluster, as a job on its head node, and follow the output. Ctrl-C leaves the\n"
            "job running. DIR and the run of --init-from are paths on the head node; DIR defaults to a new\n"
            "folder in ~/scrubjay."
        )
        return 0
    remaining = [word for word in argv if word not in ("--detach", "--quiet")]
    addresses, run_dirs = take_flag(remaining, "--address"), take_flag(remaining, "--run-dir")
    resume_dirs, logger = take_flag(remaining, "--resume"), take_logger(remaining)
    # Validate the flags here, instead of in a job that starts minutes later.
    train_argv = ["--engine", "ray", *remaining]
    ray = take_engine(train_argv)
    if ray is None:
        raise UsageError("launch always uses --engine ray; omit --engine")
    if train_argv and not resume_dirs:
        explain(train_argv[0], train_argv[1:])
    if not addresses:
        raise UsageError("launch needs --address http://HEAD:8265, the address of the cluster's dashboard")
    from scrubjay.experiments.launch.ray_job import follow, submit
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.runs.run import default_path

    if resume_dirs:
        if run_dirs:
            raise UsageError("--resume already names the run directory; omit --run-dir")
        run_dir = resume_dirs[-1]
        further = take_flag(train_argv, "--total-steps")[-1:]
        with bad_input():
            total = [str(parse_integer("--total-steps", number)) for number in further]
        trust = [word for word in train_argv if word == "--trust"]
        if len(train_argv) > len(trust):
            other = next(word for word in train_argv if word != "--trust")
            raise UsageError(f"unexpected argument {other!r}: a resumed run uses its own config; omit it")
        command = ["resume", run_dir, *(["--total-steps", *total] if total else []), *trust[:1]]
    else:
        if not train_argv:
            raise UsageError("launch needs a recipe, or --resume DIR")
        config = override(train_argv[0], train_argv[1:])
        with bad_input():
            config.check(ray)
        run_dir = run_dirs[-1] if run_dirs else f"~/scrubjay/{default_path(config).name}"
        command = ["train", train_argv[0], "--run-dir", run_dir, *train_argv[1:]]
    sizes = ["--num-env-runners", str(ray.num_env_runners), "--num-learners", str(ray.num_learners)]
    output_flags = [*(["--quiet"] if "--quiet" in argv else []), *(["--logger", logger] if logger else [])]
    with bad_input():
        client, job = submit(addresses[-1], [*command, "--engine", "ray", *sizes, *output_flags])
    print(f"job {job} at {addresses[-1]}, run directory on the head node: {run_dir}", flush=True)
    if "--detach" in argv:
        print(_follow_hint(job, addresses[-1]))
        return 0
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\njob {job} keeps running; {_follow_hint(job, addresses[-1])}", flush=True)
        return 130
    except ConnectionError as error:
        raise UsageError(f"{error}; {_follow_hint(job, addresses[-1])}") from error


def _follow_hint(job: str, address: str) -> str:
    at = f"--address {address} {job}"
    return f"follow: ray job logs --follow {at}    stop: ray job stop {at}"


def sweep(argv: Sequence[str]) -> int:
    """`scrubjay sweep RECIPE --param NAME=V1,V2 [--param ...] [--out DIR] [--jobs N] [flags of train]`."""
    remaining = list(argv)
    if not remaining or remaining[0] in ("-h", "--help"):
        print(
            "usage: scrubjay sweep RECIPE --param NAME=V1,V2 [--param NAME=V1,V2 ...] [--out DIR] [--jobs "
            "N]\n"
            "                      [--address HOST:PORT] [flags of train]\n\n"
            "Train every combination, N trials in parallel (default: one per CPU), with early stopping of\n"
            "weak trials (ASHA). NAME is a flag of train, such as memory, seed, ppo.learning-rate or\n"
            "set.corridor_length.\n"
            "Run the same command with --trust to continue an interrupted sweep. Results are written to\n"
            "DIR/table.md (default: runs/sweep). On a cluster DIR must be on a shared file system."
        )
        return 0
    from scrubjay.experiments.launch.sweep import Sweep, parse_param, run_sweep

    flag_values = {flag: take_flag(remaining, f"--{flag}") for flag in ("param", "out", "jobs", "address")}
    if not flag_values["param"]:
        raise UsageError("sweep needs at least one --param NAME=V1,V2")
    out = Path(flag_values["out"][-1] if flag_values["out"] else "runs/sweep")
    address = flag_values["address"][-1] if flag_values["address"] else None
    trust = "--trust" in remaining
    flags = tuple(word for word in remaining[1:] if word != "--trust")
    with bad_input():
        jobs = parse_integer("jobs", flag_values["jobs"][-1]) if flag_values["jobs"] else None
        params = tuple(map(parse_param, flag_values["param"]))
        return run_sweep(Sweep(remaining[0], params, flags), out, address, jobs, trust)


def take_engine(argv: list[str]) -> RayOptions | None:
    """Remove `--engine` and Ray's flags from `argv`; return the Ray options, or None for the local engine."""
    engine = take_flag(argv, "--engine") or ["local"]
    ray_flags = {
        field: values[-1]
        for field in ("num_env_runners", "num_learners", "address")
        if (values := take_flag(argv, f"--{field.replace('_', '-')}"))
    }
    choose("engine", engine[-1], ["local", "ray"])
    if engine[-1] == "local":
        if ray_flags:
            raise UsageError(f"--{next(iter(ray_flags)).replace('_', '-')} requires --engine ray")
        return None
    with bad_input():
        numbers = {name: parse_integer(name, value) for name, value in ray_flags.items() if name != "address"}
        return RayOptions(**numbers, address=ray_flags.get("address"))


def take_logger(argv: list[str]) -> str | None:
    """Remove `--logger NAME` from `argv` and return the name, or None without this flag."""
    names = take_flag(argv, "--logger")
    return choose("logger", names[-1], loggers.LOGGERS) if names else None


def join_cluster(ray: RayOptions | None) -> None:
    """Connect to the Ray cluster and print a description of it; do nothing if `ray` is None."""
    if ray is not None:
        connect(ray)
        print(describe_cluster(), flush=True)
