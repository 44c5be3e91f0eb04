"""The verbs of the `scrubjay` command: from words to calls of the functions that do the work."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
from tyro.conf import Positional

from scrubjay.agents.team_policy import TeamPolicy
from scrubjay.envs import list_environments
from scrubjay.experiments.arguments import UsageError, choose, parse, take_flag
from scrubjay.experiments.cluster import RayOptions, connect, describe_cluster
from scrubjay.experiments.config import TrainConfig
from scrubjay.experiments.environments import EnvConfig
from scrubjay.experiments.methods import METHODS
from scrubjay.experiments.overrides import override, with_settings
from scrubjay.experiments.recipes import RECIPES, describe
from scrubjay.experiments.run import Run, default_path, lock
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.stopping import Interrupted
from scrubjay.experiments.team_task import TeamTaskConfig
from scrubjay.memory import list_memories, make

if TYPE_CHECKING:
    from scrubjay.experiments.team_play import Cast


def train(words: Sequence[str]) -> int:
    """`scrubjay train RECIPE [--memory NAME] [--method NAME] [--env ID] [--set name=value] [--any.field value]`."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay train RECIPE [--memory NAME] [--method NAME] [--env ID|module:callable]\n"
            "                      [--set NAME=VALUE ...]\n"
            "                      [--run-dir DIR] [--quiet] [--any.field VALUE ...]\n"
            "                      [--engine ray [--num-env-runners N] [--num-learners N] [--address HOST:PORT]]\n\n"
            f"{_table(_recipes())}\n\nmethods, of recipes with several agents\n{_table(_methods())}\n\nscrubjay train RECIPE --help lists every field and its default."
        )
        return 0
    remaining = list(words[1:])
    run_dirs = take_flag(remaining, "--run-dir")
    quiet = "--quiet" in remaining
    ray = _engine(remaining)
    config = override(words[0], [word for word in remaining if word != "--quiet"])
    with _bad_input():
        config.check(ray)
        _join(ray)
        run = Run.create(config, run_dirs[-1] if run_dirs else None)
    print(f"run directory: {run.path}", flush=True)
    return _go_on(run, quiet, ray)


@dataclass(frozen=True)
class ResumeOptions:
    """Go on with a run from its newest checkpoint, to the result it would have had uninterrupted.

    On any engine: `--engine ray`, with `--num-env-runners`, `--num-learners` and `--address` as in train.
    """

    run: Positional[Path]
    """Its directory."""
    quiet: bool = False
    """Show no progress."""


def resume(words: Sequence[str]) -> int:
    """`scrubjay resume RUN [--engine ray ...]`."""
    remaining = list(words)
    ray = _engine(remaining)
    options = parse(ResumeOptions, remaining, "scrubjay resume")
    with _bad_input():
        run = Run.load(options.run)
        run.config.check(ray)
    if run.finished:
        print(f"{run.path} is finished")
        return 0
    with _bad_input():
        _join(ray)
    return _go_on(run, options.quiet, ray)


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes with a trained policy. `--set name=value` changes the environment."""

    run: Positional[Path]
    """The run's directory."""
    episodes: int = 100
    """How many."""
    seed: int = 1
    """Of the episodes."""
    sample: bool = False
    """Draw actions at random from the policy instead of taking its favourite."""
    best_response: bool = False
    """Of a team: let each agent learn alone against the others, and tell what it gains; before training and after.
    This unpickles the learner's state: only for runs you trust."""
    response_steps: int = 50_000
    """Environment steps each agent has for that."""


def evaluate(words: Sequence[str]) -> int:
    """`scrubjay eval RUN [--episodes N] [--set corridor_length=200]`."""
    from scrubjay.experiments.evaluation import evaluate

    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(EvalOptions, remaining, "scrubjay eval")
    with _bad_input():
        run = Run.load(options.run)
    if isinstance(run.config, TeamTaskConfig):
        return _evaluate_team(run, run.config, settings, options)
    run, config = _load(options.run)
    with _bad_input():
        if options.best_response:
            raise ValueError(f"--best-response is of teams; {run.path} is a run of one agent")
        env = with_settings(config.env, settings)
        env.make().close()
        policy = run.policy
        if options.episodes < 1:
            raise ValueError(f"episodes={options.episodes}: at least 1 is needed")
    seed = derive_seed(options.seed, "evaluation")
    summary = evaluate(policy, env, options.episodes, seed, not options.sample).summary()
    changed = ", ".join(f"{name}={value}" for name, value in env.kwargs.items())
    print(f"{config.recipe} {config.label} s{config.seed} at step {run.step:,}: {env.id} {changed}".rstrip())
    for name, words_for_it in (("episodic_return", "return "), ("success", "success")):
        if name in summary:
            low, high = summary[f"{name}_low"], summary[f"{name}_high"]
            print(f"{words_for_it}  {summary[name]:.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    print(f"length   {summary['episodic_length']:.1f} steps, {options.episodes} episodes")
    return 0


def _evaluate_team(run: Run, config: TeamTaskConfig, settings: Sequence[str], options: EvalOptions) -> int:
    from scrubjay.experiments.team_evaluation import PolicyActor, evaluate_team

    with _bad_input():
        env = with_settings(config.env, settings)
        config = dataclasses.replace(config, env=env)
        policy = run.team_policy_in(env)
        for name in ("episodes", "response_steps"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name}={getattr(options, name)}: at least 1 is needed")
    seed = derive_seed(options.seed, "evaluation")
    actor = PolicyActor(policy, deterministic=not options.sample)
    summary = evaluate_team(actor, env, options.episodes, seed).summary()
    changed = ", ".join(f"{name}={value}" for name, value in env.kwargs.items())
    print(f"{config.recipe} {config.label} s{config.seed} at step {run.step:,}: {env.id} {changed}".rstrip())
    low, high = summary.pop("episodic_return_low"), summary.pop("episodic_return_high")
    print(f"return of the team  {summary.pop('episodic_return'):.3f}  [{low:.3f}, {high:.3f}]  95 % interval")
    print(f"length  {summary.pop('episodic_length'):.1f} steps, {summary.pop('episodes')} episodes")
    if summary:
        print(_table([(name, f"{value:.4g}") for name, value in summary.items()]))
    if options.best_response:
        _print_gains(run, config, policy, options)
    return 0


def _print_gains(run: Run, config: TeamTaskConfig, policy: TeamPolicy, options: EvalOptions) -> None:
    from scrubjay.experiments.checkpoint import load_training
    from scrubjay.experiments.equilibrium import gains, untrained
    from scrubjay.experiments.progress import ProgressDisplay

    assert run.latest is not None  # where the policy came from
    learned = load_training(run.latest)["learner"]
    for when, team, known in (("before training", untrained(config), None), ("after", policy, learned)):
        total = options.response_steps * team.num_agents
        with ProgressDisplay(f"best responses {when}", total, 0) as display:
            told = gains(
                team,
                config,
                options.response_steps,
                options.episodes,
                options.seed,
                known,
                lambda agent, done: display.update(agent * options.response_steps + done, {}),
            )
        print(
            f"{when}: epsilon {max(gain.gain for gain in told):.3f}, as far as {options.response_steps:,} steps find it"
        )
        rows = [
            (
                f"agent {agent}",
                f"return {gain.before:.3f}",
                f"gains {gain.gain:+.3f}",
                f"[{gain.low:+.3f}, {gain.high:+.3f}]",
            )
            for agent, gain in enumerate(told)
        ]
        print(_table(rows))


@dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves: one panel per recipe, one curve per memory, mean and range over seeds."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs."""
    out: Path | None = None
    """File to write; its ending chooses the format. Default: curve.png in the run, or in the current folder."""
    metric: str | None = None
    """Column of metrics.jsonl; default: success, or return where success is not told."""


def plot(words: Sequence[str]) -> int:
    """`scrubjay plot RUN [RUN ...] [--out FILE] [--metric NAME]`."""
    from scrubjay.experiments.plot import plot_runs

    options = parse(PlotOptions, words, "scrubjay plot")
    with _bad_input():
        if not options.runs:
            raise ValueError("plot needs at least one run directory")
        runs = [Run.load(path) for path in options.runs]
        out = options.out or (runs[0].path if len(runs) == 1 else Path()) / "curve.png"
        print(plot_runs(runs, out, options.metric))
    return 0


@dataclass(frozen=True)
class PlayOptions:
    """Write one episode to an animated GIF, by a trained policy, at random, or of UAVs by a rule of thumb."""

    what: Positional[str]
    """A run's directory; or the id of an environment, or a recipe for its environment; or uav."""
    out: Path | None = None
    """File to write; default: episode.gif in the run, or in the current folder."""
    seed: int = 1
    """Of the episode."""
    max_steps: int = 500
    """Where to cut a long episode."""
    policy: str | None = None
    """Of a team: a run's directory or random, of uav also static or follow; default: the run's own, else follow,
    else random."""
    preset: str | None = None
    """Of uav: small, paper or city; default: as the run or recipe has it, else small."""
    coverage: Path | None = None
    """Of uav: file for a map of what a user would get at every place at the end; its ending chooses the format."""


def play(words: Sequence[str]) -> int:
    """`scrubjay play RUN|ENV_ID|RECIPE|uav [--out FILE.gif] [--set name=value]`."""
    from scrubjay.experiments import play as player
    from scrubjay.experiments.team_play import cast_team

    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(PlayOptions, remaining, "scrubjay play")
    with _bad_input():
        cast = cast_team(options.what, options.policy, options.preset, settings, options.seed)
    if cast is not None:
        return _play_team(cast, options)
    for flag in ("policy", "preset", "coverage"):
        if getattr(options, flag) is not None:
            raise UsageError(f"--{flag} is of teams, which {options.what} is not; as in: scrubjay play uav")
    folder, policy = Path(), None
    with _bad_input():
        if Path(options.what).exists():
            run, config = _load(Path(options.what))
            folder, policy, env = run.path, run.policy, config.env
        else:
            recipe = RECIPES[options.what]() if options.what in RECIPES else None
            env = recipe.env if isinstance(recipe, TrainConfig) else EnvConfig(options.what, num_envs=1)
        env = with_settings(env, settings)
        out = options.out or folder / "episode.gif"
        frames, total = player.play(env, out, policy, options.seed, options.max_steps)
    print(f"{out}: {frames} frames, return {total:g}")
    return 0


def _play_team(cast: Cast, options: PlayOptions) -> int:
    from scrubjay.experiments.coverage import plot_coverage
    from scrubjay.experiments.team_play import play_team

    with _bad_input():
        env = cast.env.make(render_mode="rgb_array")
        world = getattr(env, "world", None)
        if options.coverage is not None and world is None:
            raise ValueError(f"--coverage is of uav, not of {cast.env.id}")
        out = options.out or cast.folder / "episode.gif"
        episode = play_team(env, cast.actor, out, options.seed, options.max_steps)
        env.close()
        covered = [str(plot_coverage(world, options.coverage))] if options.coverage and world else []
    print(f"{out}: {episode.frames} frames, return {sum(episode.returns.values()):g}")
    if episode.measures:
        print(_table([(name, f"{value:.4g}") for name, value in episode.measures.items()]))
    print(*covered, sep="\n", end="\n" if covered else "")
    return 0


@dataclass(frozen=True)
class ExportOptions:
    """Write one step of a trained policy, any batch size, for programs without this package."""

    run: Positional[Path]
    """The run's directory."""
    out: Path | None = None
    """File to write; default: policy.pt2, or policy.onnx, in the run."""
    onnx: bool = False
    """Write ONNX instead of torch.export's format."""


def export(words: Sequence[str]) -> int:
    """`scrubjay export RUN [--out FILE] [--onnx]`."""
    from scrubjay.experiments.export import export_onnx, export_torch

    options = parse(ExportOptions, words, "scrubjay export")
    run, _ = _load(options.run)
    with _bad_input():
        policy = run.policy
        out = options.out or run.path / ("policy.onnx" if options.onnx else "policy.pt2")
        difference = (export_onnx if options.onnx else export_torch)(policy, out)
    print(f"{out}: reloaded, and equal to the policy up to {difference:.1e}")
    return 0


def show(words: Sequence[str]) -> int:
    """`scrubjay list`."""
    if words and words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay list\n\nShow recipes, methods, memories with the bytes of state per agent, and environments."
        )
        return 0
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}: list takes none")
    print(f"recipes\n{_table(_recipes())}\n")
    print(f"methods (of recipes with several agents)\n{_table(_methods())}\n")
    memories = []
    for name in list_memories():
        memory = make(name, dim=64)
        lines = (type(memory).__doc__ or "").strip().splitlines()
        memories.append((name, f"{memory.state_bytes():>9,} B", lines[0] if lines else ""))
    print(f"memories (state per agent at width 64)\n{_table(memories)}\n")
    print("environments\n" + _table([(name,) for name in list_environments()]))
    return 0


def demo(words: Sequence[str]) -> int:
    """`scrubjay demo`."""
    from scrubjay.experiments.demo import DemoOptions, run_demo

    options = parse(DemoOptions, words, "scrubjay demo")
    with _bad_input():
        options.check()
    return run_demo(options)


def compare(words: Sequence[str]) -> int:
    """`scrubjay compare --memories none gru --recipes tmaze --seeds 0 1 2 --out DIR [-- train flags]`."""
    from scrubjay.experiments.compare import CompareOptions, run_compare

    words = list(words)
    cut = words.index("--") if "--" in words else len(words)
    options = parse(CompareOptions, words[:cut], "scrubjay compare")
    for kind, names, known in (
        ("memory", options.memories, list_memories()),
        ("method", options.methods, list(METHODS)),
        ("recipe", options.recipes, list(RECIPES)),
    ):
        for name in names:
            choose(kind, name, known)
    with _bad_input():
        options.check()
    return run_compare(options, words[cut + 1 :])


def launch(words: Sequence[str]) -> int:
    """`scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of train]`."""
    from scrubjay.experiments.launch import follow, submit

    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay launch RECIPE --address http://HEAD:8265 [--detach] [--run-dir DIR] [flags of train]\n"
            "       scrubjay launch --resume DIR --address http://HEAD:8265 [--detach] [--num-env-runners N] ...\n\n"
            "Train on a Ray cluster, as a job of its head, and follow its output; Ctrl-C leaves it running.\n"
            "DIR is on the head, by default a new folder in ~/scrubjay."
        )
        return 0
    remaining = [word for word in words if word not in ("--detach", "--quiet")]
    addresses, run_dirs = take_flag(remaining, "--address"), take_flag(remaining, "--run-dir")
    resumed = take_flag(remaining, "--resume")
    if not addresses:
        raise UsageError("launch needs --address http://HEAD:8265, where the cluster's dashboard listens")
    # What is wrong with the flags is told here and now, not by a job minutes later.
    checked = ["--engine", "ray", *remaining]
    ray = _engine(checked)
    if ray is None:
        raise UsageError("launch is of --engine ray; leave --engine away")
    if resumed:
        if run_dirs:
            raise UsageError("--resume names the run directory; leave --run-dir away")
        run_dir = resumed[-1]
        if checked:
            raise UsageError(f"unexpected argument {checked[0]!r}: the run's own config holds")
        command = ["resume", run_dir]
    else:
        if not checked:
            raise UsageError("launch needs a recipe, or --resume DIR")
        config = override(checked[0], checked[1:])
        with _bad_input():
            config.check(ray)
        run_dir = run_dirs[-1] if run_dirs else f"~/scrubjay/{default_path(config).name}"
        command = ["train", checked[0], "--run-dir", run_dir, *checked[1:]]
    sizes = ["--num-env-runners", str(ray.num_env_runners), "--num-learners", str(ray.num_learners)]
    quiet = ["--quiet"] if "--quiet" in words else []
    with _bad_input():
        client, job = submit(addresses[-1], [*command, "--engine", "ray", *sizes, *quiet])
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
    from scrubjay.experiments.sweep import Sweep, parse_param, run_sweep

    remaining = list(words)
    if not remaining or remaining[0] in ("-h", "--help"):
        print(
            "usage: scrubjay sweep RECIPE --param NAME=V1,V2 [--param NAME=V1,V2 ...] [--out DIR] [--jobs N]\n"
            "                      [--address HOST:PORT] [flags of train]\n\n"
            "Train every combination, as many at once as there are CPUs (or N), and stop early what falls behind\n"
            "(ASHA). NAME is a flag of train: memory, seed, ppo.learning-rate, set.corridor_length, ... The same\n"
            "command goes on with what was stopped. Results are in DIR/table.md; default: runs/sweep. On a cluster\n"
            "of several machines DIR must be on a file system that all of them share."
        )
        return 0
    taken = {flag: take_flag(remaining, f"--{flag}") for flag in ("param", "out", "jobs", "address")}
    if not taken["param"]:
        raise UsageError("sweep needs at least one --param NAME=V1,V2")
    out = Path(taken["out"][-1] if taken["out"] else "runs/sweep")
    address = taken["address"][-1] if taken["address"] else None
    with _bad_input():
        jobs = _whole("jobs", taken["jobs"][-1]) if taken["jobs"] else None
        params = tuple(map(parse_param, taken["param"]))
        return run_sweep(Sweep(remaining[0], params, tuple(remaining[1:])), out, address, jobs)


def chat(words: Sequence[str]) -> int:
    """`scrubjay chat [--model NAME|FOLDER|FILE.gguf] [--policy NAME] [--budget N]`."""
    from rich.console import Console

    from scrubjay.experiments.chat import Chat, ChatOptions

    options = parse(ChatOptions, words, "scrubjay chat")
    with _bad_input():
        return Chat(options, Console()).run()


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "plot": plot,
    "play": play,
    "list": show,
    "export": export,
    "demo": demo,
    "compare": compare,
    "launch": launch,
    "sweep": sweep,
    "chat": chat,
}


def _engine(words: list[str]) -> RayOptions | None:
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
    with _bad_input():
        numbers = {name: _whole(name, value) for name, value in given.items() if name != "address"}
        return RayOptions(**numbers, address=given.get("address"))


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name}={value!r}: expected a whole number") from None


def _join(ray: RayOptions | None) -> None:
    """Join the cluster and say which one it is."""
    if ray is not None:
        connect(ray)
        print(describe_cluster(), flush=True)


def _go_on(run: Run, quiet: bool, ray: RayOptions | None = None) -> int:
    with _bad_input():
        lock(run.path).close()
    try:
        run.config.run(run.path, not quiet, ray)
    except Interrupted as stop:
        print(f"\n{stop}", flush=True)
        return stop.exit_code
    result = ", ".join(
        f"{name} {run.result[key]:.3f}"
        for name, key in (("return", "episodic_return"), ("success", "success"))
        if key in run.result
    )
    print(f"done: {result or 'not evaluated'}; curve: {run.path / 'curve.png'}")
    return 0


def _load(path: Path) -> tuple[Run, TrainConfig]:
    with _bad_input():
        run = Run.load(path)
        if not isinstance(run.config, TrainConfig):
            lacks = "of one agent" if isinstance(run.config, TeamTaskConfig) else "to act"
            raise TypeError(f"{path} is a run of kind {run.config.kind!r}: it has no policy {lacks}")
        return run, run.config


@contextlib.contextmanager
def _bad_input() -> Iterator[None]:
    """Turn the errors of checks on what the user gave into one line; elsewhere errors keep their traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, gymnasium.error.Error) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _recipes() -> list[tuple[str, str]]:
    return [(name, describe(recipe)) for name, recipe in RECIPES.items()]


def _methods() -> list[tuple[str, str]]:
    return [(name, method.description) for name, method in METHODS.items()]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
