"""Many settings of one recipe at once on Ray: Tune runs them, ASHA stops early what falls behind.

scrubjay sweep tmaze --param ppo.learning-rate=3e-4,1e-3 --param memory=gru,hcam --param seed=0,1 --out DIR
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrubjay.experiments.launching.parallel import prepare
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.run import with_weights
from scrubjay.experiments.runs.cluster import RayOptions, connect, describe_cluster
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.own import import_own
from scrubjay.experiments.runs.reading import read_text
from scrubjay.experiments.training import go_on
from scrubjay.experiments.words.foreign import printable

_REPORTS = 16
"""How often a trial is compared with the others."""


@dataclass(frozen=True)
class Sweep:
    """A grid over flags of `scrubjay train`."""

    recipe: str
    params: tuple[tuple[str, tuple[str, ...]], ...]
    """Names of flags, without dashes, and the values each takes; `set.NAME` is a setting of the
    environment."""
    flags: tuple[str, ...] = ()
    """Flags of train that all trials share."""

    def trials(self) -> list[dict[str, str]]:
        """Return the values of every trial."""
        names = [name for name, _ in self.params]
        return [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(values for _, values in self.params))
        ]

    def words(self, trial: dict[str, str]) -> list[str]:
        """Return the words after `scrubjay train RECIPE` that make this trial."""
        words = list(self.flags)
        for name, value in trial.items():
            setting = name.removeprefix("set.")
            words += ["--set", f"{setting}={value}"] if name != setting else [f"--{name}", value]
        return words


def parse_param(text: str) -> tuple[str, tuple[str, ...]]:
    """Return name and values of `name=v1,v2`. Raises ValueError on anything else."""
    name, equals, values = text.partition("=")
    if not equals or not name or not all(values.split(",")):
        raise ValueError(
            f"param {text!r}: write it as name=v1,v2,..., for example ppo.learning-rate=3e-4,1e-3"
        )
    return name.removeprefix("--").replace("_", "-") if "set." not in name else name, tuple(values.split(","))


def run_sweep(
    sweep: Sweep, out: Path, address: str | None = None, jobs: int | None = None, trust: bool = False
) -> int:
    """Train all trials, going on where an earlier call was stopped; write and print table.md.

    Returns 0, or 1 if a trial failed. Raises ValueError if a trial's flags are wrong, if `out` holds another
    sweep, or one that was begun and there is no `trust` in it, or if the cluster cannot be joined.
    """
    names = [name for name, _ in sweep.params]
    for name, values in sweep.params:
        if names.count(name) > 1 or len(set(values)) < len(values):
            raise ValueError(f"param {name!r}: name it once, with different values")
    configs = [override(sweep.recipe, sweep.words(trial)) for trial in sweep.trials()]
    for config in configs:
        config.check()
        with_weights(config)
    out.mkdir(parents=True, exist_ok=True)
    asked = json.dumps([sweep.recipe, sweep.params, sweep.flags], indent=1)
    note = out / "sweep.json"
    if note.exists() and read_text(note) != asked:
        raise ValueError(f"{out} holds another sweep, see {note}; choose another --out")
    if (out / "tune").exists() and not trust:
        raise ValueError(
            f"{out / 'tune'} is what Ray Tune pickled of a sweep, and going on runs whatever code is there: "
            "add --trust if that sweep is yours, or choose another --out"
        )
    write_atomically(note, asked)
    connect(RayOptions(num_env_runners=1, address=address))
    print(describe_cluster(), flush=True)
    handler = signal.getsignal(signal.SIGINT)
    results = _tuner(sweep, out.resolve(), jobs, max(config.planned_steps for config in configs)).fit()
    # Tune takes Ctrl-C for an end like any other; it puts the handler back that it found only if there was
    # one.
    if signal.getsignal(signal.SIGINT) is handler:
        print("\nstopped; the same command goes on, with --trust")
        return 130
    signal.signal(signal.SIGINT, handler)
    table = _table(
        sweep, out, [(result.config or {}, result.metrics or {}, result.error) for result in results]
    )
    write_atomically(out / "table.md", table)
    print(printable(table))
    return 1 if results.num_errors else 0


def _tuner(sweep: Sweep, out: Path, jobs: int | None, steps: int) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    trainable = tune.with_resources(
        functools.partial(_train, sweep=sweep, out=out, here=Path.cwd()), {"cpu": 1}
    )
    storage = out / "tune"
    if tune.Tuner.can_restore(str(storage)):
        return tune.Tuner.restore(str(storage), trainable, resume_unfinished=True, restart_errored=True)
    return tune.Tuner(
        trainable,
        param_space={name: tune.grid_search(list(values)) for name, values in sweep.params},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            max_concurrent_trials=jobs,
            scheduler=ASHAScheduler(
                time_attr="step", max_t=steps, grace_period=max(1, steps // 4), reduction_factor=2
            ),
        ),
        run_config=tune.RunConfig(name=storage.name, storage_path=str(out), verbose=1),
    )


def _train(trial: dict[str, str], *, sweep: Sweep, out: Path, here: Path) -> None:
    """One trial, in a worker; its run directory outlives it, so that a restarted one goes on."""
    from ray import tune

    import_own()
    config: Any = override(sweep.recipe, sweep.words(trial))
    if (
        config.init_from is not None
    ):  # which is named as seen from where the sweep began, not from Tune's folder
        config = dataclasses.replace(config, init_from=str(here / config.init_from))
    folder = out / folder_of(trial)
    run = prepare(config, folder)
    planned = run.config.planned_steps
    reported = 0

    def report(step: int, row: dict[str, float]) -> None:
        nonlocal reported
        score = row.get("charts/success", row.get("charts/episodic_return"))
        due = step * _REPORTS // planned
        # The end is reported by the result: at the last step ASHA would end the trial before it is evaluated.
        if score is not None and reported < due < _REPORTS:
            reported = due
            tune.report({"score": score, "step": step})

    go_on(run, on_update=report)
    result = run.result
    score = result["success"] if "success" in result else result.get("episodic_return", float("nan"))
    tune.report({"score": score, "step": planned, "finished": True})


def folder_of(trial: dict[str, str]) -> str:
    """Return the name of a trial's folder."""
    return "_".join(f"{name}={value}".replace("/", "-") for name, value in trial.items())


def _table(sweep: Sweep, out: Path, results: Sequence[tuple[dict[str, Any], dict[str, Any], Any]]) -> str:
    names = [name for name, _ in sweep.params]
    lines = [
        (
            f"{sweep.recipe}: success, or return where success is not told; by the final evaluation where "
            "finished,"
        ),
        "over the last 100 training episodes where stopped early.",
        "",
        f"| {' | '.join(names)} | score | steps | | run |",
        f"|{' --- |' * (len(names) + 4)}",
    ]
    ranked = sorted(results, key=_rank)
    for config, metrics, error in ranked:
        state = "failed" if error else "finished" if metrics.get("finished") else "stopped early"
        score = f"{metrics['score']:.3f}" if "score" in metrics else ""
        values = " | ".join(str(config.get(name, "")) for name in names)
        folder = out / folder_of({name: config[name] for name in names}) if config else ""
        lines.append(f"| {values} | {score} | {metrics.get('step', 0):,} | {state} | {folder} |")
    return "\n".join(lines) + "\n"


def _rank(result: tuple[dict[str, Any], dict[str, Any], Any]) -> float:
    score = result[1].get("score", math.nan)
    return math.inf if math.isnan(score) else -score
