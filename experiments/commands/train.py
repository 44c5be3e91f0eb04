"""The verbs of the `scrubjay` command: from words to calls of the functions that do the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.envs import list_environments
from scrubjay.experiments.commands import teams
from scrubjay.experiments.commands.cluster import join, launch, sweep, take_engine
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.recipes import RECIPES, describe
from scrubjay.experiments.recipes.methods import METHODS
from scrubjay.experiments.recipes.overrides import override, with_settings
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.directory import lock
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.training import go_on
from scrubjay.experiments.words.arguments import UsageError, choose, parse, take_flag
from scrubjay.experiments.words.terminal import bad_input, table
from scrubjay.memory import list_memories, make


def train(words: Sequence[str]) -> int:
    """`scrubjay train RECIPE [--memory NAME] [--method NAME] [--env ID] [--set name=value] [--any.field value]`."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay train RECIPE [--memory NAME] [--method NAME] [--env ID|module:callable]\n"
            "                      [--set NAME=VALUE ...]\n"
            "                      [--run-dir DIR] [--quiet] [--any.field VALUE ...]\n"
            "                      [--engine ray [--num-env-runners N] [--num-learners N] [--address HOST:PORT]]\n\n"
            f"{table(_recipes())}\n\nmethods, of recipes with several agents\n{table(_methods())}\n\nscrubjay train RECIPE --help lists every field and its default."
        )
        return 0
    remaining = list(words[1:])
    run_dirs = take_flag(remaining, "--run-dir")
    quiet = "--quiet" in remaining
    ray = take_engine(remaining)
    config = override(words[0], [word for word in remaining if word != "--quiet"])
    with bad_input():
        config.check(ray)
        join(ray)
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
    ray = take_engine(remaining)
    options = parse(ResumeOptions, remaining, "scrubjay resume")
    with bad_input():
        run = Run.load(options.run)
        run.config.check(ray)
    if run.finished:
        print(f"{run.path} is finished")
        return 0
    with bad_input():
        join(ray)
    return _go_on(run, options.quiet, ray)


def evaluate(words: Sequence[str]) -> int:
    """`scrubjay eval RUN [--episodes N] [--set corridor_length=200]`."""
    from scrubjay.experiments.evaluation.policy import EvalOptions, evaluate

    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(EvalOptions, remaining, "scrubjay eval")
    with bad_input():
        run = Run.load(options.run)
    if isinstance(run.config, TeamTaskConfig):
        return teams.evaluate(run, run.config, settings, options)
    run, config = _load(options.run)
    with bad_input():
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
    from scrubjay.experiments.reports.curves import plot_runs

    options = parse(PlotOptions, words, "scrubjay plot")
    with bad_input():
        if not options.runs:
            raise ValueError("plot needs at least one run directory")
        runs = [Run.load(path) for path in options.runs]
        out = options.out or (runs[0].path if len(runs) == 1 else Path()) / "curve.png"
        print(plot_runs(runs, out, options.metric))
    return 0


def play(words: Sequence[str]) -> int:
    """`scrubjay play RUN|ENV_ID|RECIPE|uav [--out FILE.gif] [--set name=value]`."""
    from scrubjay.experiments.reports import episode as player
    from scrubjay.experiments.reports.team_episode import cast_team

    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(player.PlayOptions, remaining, "scrubjay play")
    with bad_input():
        cast = cast_team(options.what, options.policy, options.preset, settings, options.seed)
    if cast is not None:
        return teams.play(cast, options)
    for flag in ("policy", "preset", "coverage"):
        if getattr(options, flag) is not None:
            raise UsageError(f"--{flag} is of teams, which {options.what} is not; as in: scrubjay play uav")
    folder, policy = Path(), None
    with bad_input():
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
    from scrubjay.experiments.reports.export import export_onnx, export_torch

    options = parse(ExportOptions, words, "scrubjay export")
    run, _ = _load(options.run)
    with bad_input():
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
    print(f"recipes\n{table(_recipes())}\n")
    print(f"methods (of recipes with several agents)\n{table(_methods())}\n")
    memories = []
    for name in list_memories():
        memory = make(name, dim=64)
        lines = (type(memory).__doc__ or "").strip().splitlines()
        memories.append((name, f"{memory.state_bytes():>9,} B", lines[0] if lines else ""))
    print(f"memories (state per agent at width 64)\n{table(memories)}\n")
    print("environments\n" + table([(name,) for name in list_environments()]))
    return 0


def demo(words: Sequence[str]) -> int:
    """`scrubjay demo`."""
    from scrubjay.experiments.commands.demo import DemoOptions, run_demo

    options = parse(DemoOptions, words, "scrubjay demo")
    with bad_input():
        options.check()
    return run_demo(options)


def compare(words: Sequence[str]) -> int:
    """`scrubjay compare --memories none gru --recipes tmaze --seeds 0 1 2 --out DIR [-- train flags]`."""
    from scrubjay.experiments.commands.compare import CompareOptions, run_compare

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
    with bad_input():
        options.check()
    return run_compare(options, words[cut + 1 :])


def longcontext(words: Sequence[str]) -> int:
    """`scrubjay longcontext perplexity|haystack|speed|agreement TEXT [--methods NAME ...] [--out DIR]`."""
    try:
        from scrubjay.experiments.longcontext.commands import longcontext
    except ModuleNotFoundError as error:
        raise UsageError(f"longcontext needs more: pip install 'scrubjay[lm]' ({error})") from error
    return longcontext(words)


def inspect(words: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--out PNG]`."""
    from scrubjay.experiments.reports.attention import InspectOptions, inspect_model

    options = parse(InspectOptions, words, "scrubjay inspect")
    with bad_input():
        return inspect_model(options)


def chat(words: Sequence[str]) -> int:
    """`scrubjay chat [--model NAME|FOLDER|FILE.gguf] [--policy NAME] [--budget N]`."""
    from rich.console import Console

    from scrubjay.experiments.commands.chat import Chat, ChatOptions

    options = parse(ChatOptions, words, "scrubjay chat")
    with bad_input():
        return Chat(options, Console()).run()


def memory(words: Sequence[str]) -> int:
    """`scrubjay memory add|search|show|forget|import|export FILE ...`."""
    from scrubjay.experiments.commands.memory import memory

    return memory(words)


def agent(words: Sequence[str]) -> int:
    """`scrubjay agent [QUESTION] [--model NAME] [--tools NAME,...] [--memory FILE]`."""
    from scrubjay.experiments.commands.agent import AgentOptions, run_agent

    options = parse(AgentOptions, words, "scrubjay agent")
    with bad_input():
        return run_agent(options)


def kagentbench(words: Sequence[str]) -> int:
    """`scrubjay kagentbench FILE [PREDICTIONS]`."""
    from scrubjay.experiments.language.scores import KAgentBenchOptions, run_kagentbench

    options = parse(KAgentBenchOptions, words, "scrubjay kagentbench")
    with bad_input():
        return run_kagentbench(options)


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
    "inspect": inspect,
    "longcontext": longcontext,
    "chat": chat,
    "agent": agent,
    "memory": memory,
    "kagentbench": kagentbench,
}


def _go_on(run: Run, quiet: bool, ray: RayOptions | None = None) -> int:
    with bad_input():
        lock(run.path).close()
    try:
        go_on(run, not quiet, ray)
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
    with bad_input():
        run = Run.load(path)
        if not isinstance(run.config, TrainConfig):
            lacks = "of one agent" if isinstance(run.config, TeamTaskConfig) else "to act"
            raise TypeError(f"{path} is a run of kind {run.config.kind!r}: it has no policy {lacks}")
        return run, run.config


def _recipes() -> list[tuple[str, str]]:
    return [(name, describe(recipe)) for name, recipe in RECIPES.items()]


def _methods() -> list[tuple[str, str]]:
    return [(name, method.description) for name, method in METHODS.items()]
