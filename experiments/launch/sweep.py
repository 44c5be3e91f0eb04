"""Grid search over the settings of a recipe with Ray Tune, on request with early stopping by ASHA.

scrubjay sweep tmaze --param ppo.learning-rate=3e-4,1e-3 --param memory=gru,hcam --param seed=0,1 --out DIR
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scrubjay.experiments.cli.arguments import find_owners
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.files import CONFIG, own_folder, read_untrusted, write_atomically
from scrubjay.experiments.launch.parallel import prepare
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster
from scrubjay.experiments.runs.run import resolve_initial_weights
from scrubjay.experiments.runs.status import write_status
from scrubjay.experiments.training import run_training
from scrubjay.experiments.user_modules import import_user_modules

EarlyStopping = Literal["none", "asha"]
_REPORTS = 16
"""Number of times a trial reports its score to the scheduler."""
_MEMORIES = ("memory", "memory.parts", "method")
"""Flags that select a memory, or a method of a team."""
_ABSENT = "-"
"""Value of a setting of memories in the trials of a memory that does not have this setting."""


@dataclass(frozen=True)
class Sweep:
    """Grid over flags of `scrubjay train`."""

    recipe: str
    params: tuple[tuple[str, tuple[str, ...]], ...]
    """Flag names without dashes, each with its values; `set.NAME` is a setting of the environment."""
    flags: tuple[str, ...] = ()
    """Flags of `scrubjay train` that are the same in all trials."""
    early_stopping: EarlyStopping = "none"
    """Rule that ends trials before their last step."""
    compare_memories: bool = False
    """Let early stopping compare trials of different memories, or of different methods of a team."""

    def __post_init__(self) -> None:
        if self.compare_memories and self.early_stopping == "none":
            raise ValueError("compare_memories=True: needs early stopping; add --early-stopping asha")
        groups = [self.group(trial) for trial in self.trials()]
        if self.early_stopping != "none" and len(set(groups)) == len(groups):
            raise ValueError(
                f"early_stopping={self.early_stopping!r}: no two trials may be compared, since they "
                "differ in seed, task or memory; give another --param with several values, or add "
                "--compare-memories"
            )

    def group(self, trial: dict[str, str]) -> tuple[str, ...]:
        """Return a key that is equal for trials that early stopping may compare.

        Trials with different seeds or in different tasks are never compared. Trials with different memories
        or methods are compared only if `compare_memories` is True.
        """
        apart = {"seed", "env"} if self.compare_memories else {"seed", "env", *_MEMORIES}
        names = [name for name, _ in self.params if name in apart or name.startswith("set.")]
        return tuple(trial[name] for name in names)

    def trials(self) -> list[dict[str, str]]:
        """Return the flag values of every trial.

        A setting that only some of the memories have is "-" for the other memories, which thus have one trial
        instead of one for each value.
        """
        names = [name for name, _ in self.params]
        owners = {name: own for name in names if (own := self._find_owners(name))}
        trials: list[dict[str, str]] = []
        for values in itertools.product(*(values for _, values in self.params)):
            trial = dict(zip(names, values, strict=True))
            absent = {name: _ABSENT for name, own in owners.items() if trial["memory"] not in own}
            if not absent or trial | absent not in trials:
                trials.append(trial | absent)
        return trials

    def _find_owners(self, name: str) -> set[str]:
        """Return the memories of the sweep that have the setting `name`; empty if no setting of memories."""
        owners = find_owners(f"--policy.{name.removeprefix('policy.')}") if _is_of_memory(name) else []
        return set(owners) & set(dict(self.params).get("memory", ()))

    @property
    def short_names(self) -> dict[str, str]:
        """Names of the flags by their last parts, for Tune, whose tables cut names at 20 characters.

        A last part that several flags share is not used.
        """
        names = [name for name, _ in self.params]
        last = [name.rpartition(".")[2] for name in names]
        return {part if last.count(part) == 1 else name: name for name, part in zip(names, last, strict=True)}

    def from_tune(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the flag values of a trial, in the order of `params`, from the names that Tune has."""
        return {name: config[short] for short, name in self.short_names.items() if short in config}

    def folder(self, out: Path, trial: dict[str, str]) -> Path:
        """Return the run directory of a trial."""
        return out / folder_name(trial)

    def arguments(self, trial: dict[str, str]) -> list[str]:
        """Return the arguments after `scrubjay train RECIPE` for this trial."""
        arguments = list(self.flags)
        for name, value in trial.items():
            if _is_absent(name, value):
                continue
            setting = name.removeprefix("set.")
            arguments += ["--set", f"{setting}={value}"] if name != setting else [f"--{name}", value]
        return arguments


def parse_param(text: str) -> tuple[str, tuple[str, ...]]:
    """Parse `name=v1,v2` into name and values. Raises ValueError if `text` has another format."""
    name, equals, values = text.partition("=")
    if not equals or not name or not all(values.split(",")):
        raise ValueError(
            f"param {text!r}: write it as name=v1,v2,..., for example ppo.learning-rate=3e-4,1e-3"
        )
    return name.removeprefix("--").replace("_", "-") if "set." not in name else name, tuple(values.split(","))


def run_sweep(
    sweep: Sweep, out: Path, address: str | None = None, jobs: int | None = None, trust: bool = False
) -> int:
    """Train all trials, or continue an interrupted sweep; then write and print table.md.

    Returns the exit code: 0, 1 if a trial failed, or 130 after Ctrl-C. Raises ValueError if a trial's flags
    are invalid, if another process uses `out`, if `out` holds another sweep, if `out` holds an interrupted
    sweep and `trust` is False, or if the cluster cannot be reached.
    """
    names = [name for name, _ in sweep.params]
    for name, values in sweep.params:
        if names.count(name) > 1 or len(set(values)) < len(values):
            raise ValueError(f"param {name!r}: duplicate flag or value; give it once, with distinct values")
    configs = [_make_config(sweep, trial) for trial in sweep.trials()]
    own_folder(out)
    description = json.dumps(dataclasses.asdict(sweep), indent=1)
    note = out / "sweep.json"
    if note.exists() and read_untrusted(note) != description:
        raise ValueError(f"{out} holds another sweep, see {note}; choose another --out")
    if (out / "tune").exists() and not trust:
        raise ValueError(
            f"{out / 'tune'} holds pickled files of Ray Tune, which may execute code when loaded; "
            "add --trust if that sweep is yours, or choose another --out"
        )
    write_atomically(note, description)
    connect(RayOptions(num_env_runners=1, address=address))
    print(describe_cluster(), flush=True)
    handler = signal.getsignal(signal.SIGINT)
    # Ray would end the process at once. Tune stores its state at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    results = _tuner(sweep, out.resolve(), jobs, max(config.planned_steps for config in configs)).fit()
    # Tune treats Ctrl-C as a normal end, but restores the previous signal handler only after Ctrl-C.
    if signal.getsignal(signal.SIGINT) is handler:
        print("\nstopped; run the same command with --trust to continue")
        return 130
    signal.signal(signal.SIGINT, handler)
    rows = [(sweep.from_tune(result.config or {}), result.metrics or {}, result.error) for result in results]
    for trial, metrics, error in rows:
        if trial and error:  # a worker that was killed has written no result
            _write_status(sweep.folder(out, trial), "failed", metrics.get("step", 0), error)
    table = _table(sweep, out, rows)
    write_atomically(out / "table.md", table)
    print(printable(table))
    return 1 if results.num_errors else 0


def _make_config(sweep: Sweep, trial: dict[str, str]) -> Any:
    """Return the config of a trial. Raises ValueError, which names the trial, if its settings are invalid."""
    try:
        config = override(sweep.recipe, sweep.arguments(trial))
        config.check()
        resolve_initial_weights(config)
    except ValueError as error:
        if len(sweep.trials()) == 1:
            raise
        raise UsageError(f"trial {_describe(trial)}: {error}") from error
    return config


def _tuner(sweep: Sweep, out: Path, jobs: int | None, steps: int) -> Any:
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    trainable = tune.with_resources(
        functools.partial(_train, sweep=sweep, out=out, here=Path.cwd()), {"cpu": 1}
    )
    storage = out / "tune"
    trials = sweep.trials()
    space = {
        short: tune.grid_search(list(dict.fromkeys(trial[name] for trial in trials)))
        for short, name in sweep.short_names.items()
    }
    points = [{short: trial[name] for short, name in sweep.short_names.items()} for trial in trials]
    if tune.Tuner.can_restore(str(storage)):
        try:
            return tune.Tuner.restore(
                str(storage), trainable, resume_unfinished=True, restart_errored=True, param_space=space
            )
        except ValueError as error:  # Tune refuses another space
            raise UsageError(
                f"{storage} is from another version of Scrubjay and cannot be continued; choose another --out"
            ) from error
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            # Without these points, Tune would also train the combinations that are no trials.
            search_alg=BasicVariantGenerator(points_to_evaluate=points, max_concurrent=jobs or 0),
            num_samples=len(points),
            scheduler=_make_scheduler(sweep, steps, out),
        ),
        run_config=tune.RunConfig(name=storage.name, storage_path=str(out), verbose=1),
    )


def _make_scheduler(sweep: Sweep, steps: int, out: Path) -> Any:
    """Return a scheduler that compares the trials of each group by ASHA, or None without early stopping.

    It writes the result.json of the trials that it stops.
    """
    if sweep.early_stopping == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

    class GroupedASHA(FIFOScheduler):
        def __init__(self) -> None:
            self._by_group: dict[Any, ASHAScheduler] = {}

        def set_search_properties(self, metric: Any, mode: Any, **spec: Any) -> bool:
            return True

        def _of(self, trial: Any) -> ASHAScheduler:
            group = sweep.group(sweep.from_tune(trial.config))
            if group not in self._by_group:
                self._by_group[group] = ASHAScheduler(
                    time_attr="step",
                    metric="score",
                    mode="max",
                    max_t=steps,
                    grace_period=max(1, steps // 4),
                    reduction_factor=2,
                )
            return self._by_group[group]

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = self._of(trial).on_trial_result(tune_controller, trial, result)
            # At its last step, a finished trial is stopped, too.
            if decision == TrialScheduler.STOP and not result.get("finished"):
                _write_status(
                    sweep.folder(out, sweep.from_tune(trial.config)), "stopped early", result["step"]
                )
            return decision

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._of(trial).on_trial_complete(tune_controller, trial, result)

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(tune_controller, trial)

    return GroupedASHA()


def _train(tune_config: dict[str, str], *, sweep: Sweep, out: Path, here: Path) -> None:
    """Train one trial in a worker; a restarted trial continues from its run directory."""
    from ray import tune

    import_user_modules()
    trial = sweep.from_tune(tune_config)
    config: Any = override(sweep.recipe, sweep.arguments(trial))
    if config.init_from is not None:  # relative to the folder where the sweep was started, not to Tune's
        config = dataclasses.replace(config, init_from=str(here / config.init_from))
    run = prepare(config, sweep.folder(out, trial))
    total_steps = run.config.planned_steps
    num_reports = 0

    def report(step: int, row: dict[str, float]) -> None:
        nonlocal num_reports
        score = row.get("charts/success", row.get("charts/episodic_return"))
        due = step * _REPORTS // total_steps
        # The last step is reported with the result: ASHA would otherwise end the trial before its evaluation.
        if score is not None and num_reports < due < _REPORTS:
            num_reports = due
            tune.report({"score": score, "step": step})

    run_training(run, on_update=report)
    result = run.result
    score = result["success"] if "success" in result else result.get("episodic_return", float("nan"))
    tune.report({"score": score, "step": total_steps, "finished": True})


def _write_status(
    folder: Path, status: Literal["stopped early", "failed"], step: int, error: object = ""
) -> None:
    if (folder / CONFIG).exists():  # otherwise the trial failed before its run began
        write_status(folder, status, step, error)


def folder_name(trial: dict[str, str]) -> str:
    """Return the folder name of a trial."""
    return _describe(trial, "_").replace("/", "-")


def _describe(trial: dict[str, str], separator: str = " ") -> str:
    """Return the settings of a trial that its memory has."""
    return separator.join(f"{name}={value}" for name, value in trial.items() if not _is_absent(name, value))


def _is_absent(name: str, value: str) -> bool:
    return value == _ABSENT and _is_of_memory(name)


def _is_of_memory(name: str) -> bool:
    return name.startswith(("memory.", "policy.memory."))


def _table(sweep: Sweep, out: Path, results: Sequence[tuple[dict[str, Any], dict[str, Any], Any]]) -> str:
    names = [name for name, _ in sweep.params]
    totals = {
        sweep.folder(out, trial): override(sweep.recipe, sweep.arguments(trial)).planned_steps
        for trial in sweep.trials()
    }
    rows = sorted(results, key=_rank)
    lines = [f"{sweep.recipe}: success rate, or return if there is none, in the final evaluation."]
    if any(_state(metrics, error) == "stopped" for _, metrics, error in rows):
        lines += [
            "Trials that early stopping ended were not evaluated. They stand last, with the score of their",
            "last 100 training episodes. Do not compare it with that of a finished trial.",
        ]
    lines += ["", f"| {' | '.join(names)} | score | steps | | run |", f"|{' --- |' * (len(names) + 4)}"]
    for config, metrics, error in rows:
        state = _state(metrics, error)
        folder = sweep.folder(out, config) if config else out
        steps = f"{metrics.get('step', 0):,}"
        if state == "stopped":
            state, steps = "stopped early", f"{steps} of {totals[folder]:,}"
        score = f"{metrics['score']:.3f}" if "score" in metrics else ""
        values = " | ".join(str(config.get(name, "")) for name in names)
        lines.append(f"| {values} | {score} | {steps} | {state} | {folder} |")
    scores = [
        (config, metrics["score"])
        for config, metrics, error in results
        if _state(metrics, error) == "finished" and not math.isnan(metrics["score"])
    ]
    return "\n".join(lines + _list_means(sweep, scores)) + "\n"


def _list_means(sweep: Sweep, scores: Sequence[tuple[dict[str, Any], float]]) -> list[str]:
    """Return the lines of the table of mean scores; none if no two trials can be averaged.

    Each combination of settings has a mean over the seeds. Then each value of a setting has a mean over all
    trials that have this value.
    """
    swept_names = [name for name, values in sweep.params if len(values) > 1 and name != "seed"]
    lines, trials = [], sweep.trials()
    for names in ([swept_names] if len(swept_names) > 1 else []) + [[name] for name in swept_names]:
        groups: dict[tuple[str, ...], list[float]] = {}
        for trial in trials:
            groups.setdefault(tuple(trial[name] for name in names), [])
        for trial, score in scores:
            groups[tuple(trial[name] for name in names)].append(score)
        if max(map(len, groups.values())) > 1:
            lines += [
                f"| {settings} | {sum(group) / len(group):.3f} | {len(group)} |"
                for key, group in groups.items()
                if group and (settings := _describe(dict(zip(names, key, strict=True))))
            ]
    if not lines:
        return []
    head = ["", "Mean score of the finished trials with these settings:", ""]
    return [*head, "| settings | mean | trials |", "| --- | --- | --- |", *lines]


def _state(metrics: dict[str, Any], error: Any) -> str:
    return "failed" if error else "finished" if metrics.get("finished") else "stopped"


def _rank(result: tuple[dict[str, Any], dict[str, Any], Any]) -> tuple[int, float]:
    """Return a sort key: finished trials first, each kind by descending score."""
    _, metrics, error = result
    score = metrics.get("score", math.nan)
    order = ("finished", "stopped", "failed").index(_state(metrics, error))
    return order, math.inf if math.isnan(score) else -score
