"""The verbs that need Ray: `scrubjay launch` and `scrubjay sweep`; and the engine's flags of all verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scrubjay.experiments import loggers
from scrubjay.experiments.explain import explain
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster
from scrubjay.experiments.words.arguments import UsageError, choose, take_flag
from scrubjay.experiments.words.terminal import bad_input, whole_number


def launch(words: Sequence[str]) -> int:
    """`scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of train]`."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of "
            "train]\n"
            "       scrubjay launch --resume DIR --address http://HEAD:8265 [--total-steps N] [--detach] "
            "[--trust]\n"
            "                       [--num-env-runners N] ...\n\n"
            "Train on a Ray cluster, as a job of its head, and follow its output; Ctrl-C leaves it running.\n"
            "DIR is on the head, by default a new folder in ~/scrubjay; so is the run that --init-from names."
        )
        return 0
    remaining = [word for word in words if word not in ("--detach", "--quiet")]
    addresses, run_dirs = take_flag(remaining, "--address"), take_flag(remaining, "--run-dir")
    resumed, logger = take_flag(remaining, "--resume"), take_logger(remaining)
    # What is wrong with the flags is told here and now, not by a job minutes later.
    checked = ["--engine", "ray", *remaining]
    ray = take_engine(checked)
    if ray is None:
        raise UsageError("launch is of --engine ray; leave --engine away")
    if checked and not resumed:
        explain(checked[0], checked[1:])
    if not addresses:
        raise UsageError("launch needs --address http://HEAD:8265, where the cluster's dashboard listens")
    from scrubjay.experiments.launching.launch import follow, submit
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.experiments.run import default_path

    if resumed:
        if run_dirs:
            raise UsageError("--resume names the run directory; leave --run-dir away")
        run_dir = resumed[-1]
        further = take_flag(checked, "--total-steps")[-1:]
        with bad_input():
            total = [str(whole_number("--total-steps", number)) for number in further]
        trust = [word for word in checked if word == "--trust"]
        if len(checked) > len(trust):
            other = next(word for word in checked if word != "--trust")
            raise UsageError(f"unexpected argument {other!r}: the run's own config holds")
        command = ["resume", run_dir, *(["--total-steps", *total] if total else []), *trust[:1]]
    else:
        if not checked:
            raise UsageError("launch needs a recipe, or --resume DIR")
        config = override(checked[0], checked[1:])
        with bad_input():
            config.check(ray)
        run_dir = run_dirs[-1] if run_dirs else f"~/scrubjay/{default_path(config).name}"
        command = ["train", checked[0], "--run-dir", run_dir, *checked[1:]]
    sizes = ["--num-env-runners", str(ray.num_env_runners), "--num-learners", str(ray.num_learners)]
    told = [*(["--quiet"] if "--quiet" in words else []), *(["--logger", logger] if logger else [])]
    with bad_input():
        client, job = submit(addresses[-1], [*command, "--engine", "ray", *sizes, *told])
    print(f"job {job} at {addresses[-1]}, run directory on its head: {run_dir}", flush=True)
    if "--detach" in words:
        print(_how_to_find(job, addresses[-1]))
        return 0
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\njob {job} goes on; {_how_to_find(job, addresses[-1])}", flush=True)
        return 130
    except ConnectionError as error:
        raise UsageError(f"{error}; {_how_to_find(job, addresses[-1])}") from error


def _how_to_find(job: str, address: str) -> str:
    at = f"--address {address} {job}"
    return f"follow: ray job logs --follow {at}    stop: ray job stop {at}"


def sweep(words: Sequence[str]) -> int:
    """`scrubjay sweep RECIPE --param NAME=V1,V2 [--param ...] [--out DIR] [--jobs N] [flags of train]`."""
    remaining = list(words)
    if not remaining or remaining[0] in ("-h", "--help"):
        print(
            "usage: scrubjay sweep RECIPE --param NAME=V1,V2 [--param NAME=V1,V2 ...] [--out DIR] [--jobs "
            "N]\n"
            "                      [--address HOST:PORT] [flags of train]\n\n"
            "Train every combination, as many at once as there are CPUs (or N), and stop early what falls "
            "behind\n"
            "(ASHA). NAME is a flag of train: memory, seed, ppo.learning-rate, set.corridor_length, ... The "
            "same\n"
            "command with --trust goes on with what was stopped. Results are in DIR/table.md; default: "
            "runs/sweep. On a cluster\n"
            "of several machines DIR must be on a file system that all of them share."
        )
        return 0
    from scrubjay.experiments.launching.sweep import Sweep, parse_param, run_sweep

    taken = {flag: take_flag(remaining, f"--{flag}") for flag in ("param", "out", "jobs", "address")}
    if not taken["param"]:
        raise UsageError("sweep needs at least one --param NAME=V1,V2")
    out = Path(taken["out"][-1] if taken["out"] else "runs/sweep")
    address = taken["address"][-1] if taken["address"] else None
    trust = "--trust" in remaining
    flags = tuple(word for word in remaining[1:] if word != "--trust")
    with bad_input():
        jobs = whole_number("jobs", taken["jobs"][-1]) if taken["jobs"] else None
        params = tuple(map(parse_param, taken["param"]))
        return run_sweep(Sweep(remaining[0], params, flags), out, address, jobs, trust)


def take_engine(words: list[str]) -> RayOptions | None:
    """Take the engine's flags from `words`; None means the local engine."""
    engine = take_flag(words, "--engine") or ["local"]
    given = {
        field: values[-1]
        for field in ("num_env_runners", "num_learners", "address")
        if (values := take_flag(words, f"--{field.replace('_', '-')}"))
    }
    choose("engine", engine[-1], ["local", "ray"])
    if engine[-1] == "local":
        if given:
            raise UsageError(f"--{next(iter(given)).replace('_', '-')} belongs to --engine ray")
        return None
    with bad_input():
        numbers = {name: whole_number(name, value) for name, value in given.items() if name != "address"}
        return RayOptions(**numbers, address=given.get("address"))


def take_logger(words: list[str]) -> str | None:
    """Take the name of a service that is told of every update from `words`; None if there is none."""
    named = take_flag(words, "--logger")
    return choose("logger", named[-1], loggers.LOGGERS) if named else None


def join(ray: RayOptions | None) -> None:
    """Join the cluster and say which one it is."""
    if ray is not None:
        connect(ray)
        print(describe_cluster(), flush=True)
