"""Figures of the pages of results, drawn from stored rows and tables without a new run.

`python -P -m scrubjay.experiments.quality.questions [FOLDER [NAME ...]]` draws all figures, or those with
these names, into the folder of results, as PNG and as SVG.
"""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from scrubjay.experiments.quality.rows import (
    Results,
    Seeds,
    draw_curves,
    draw_dots,
    draw_seeds,
    make_axes,
    mark_level,
    sort_scores,
)
from scrubjay.experiments.recipes.registry import task_title
from scrubjay.experiments.viz.curves import (
    add_note,
    draw_level,
    draw_mean,
    place_legend,
    save_figure,
    set_log_ticks,
)
from scrubjay.experiments.viz.style import BLUE, GREY, ORANGE, assign_styles

_SEEDS = "Dots: one per seed; bars: mean of the seeds"
_BANDS = "Lines: mean of three seeds; bands: lowest to highest seed"
_SUCCESS = "success rate"
_ACCURACY = "accuracy"
_CORRIDOR = "corridor in the test, steps"
_LENGTH = "inputs of a sequence in the test"


def remember(results: Results) -> Figure:
    """Success after training on RepeatPrevious and in two T-mazes."""
    figure, panels = make_axes(3, width=3.2, height=5.2)
    for axes, name, task, title, chance in zip(
        panels,
        ("repeat-previous", "tmaze-families", "tmaze-50"),
        ("repeat-previous", "tmaze-20", "tmaze"),
        ("RepeatPrevious, 4 steps back", "T-maze, corridor of 20 steps", "T-maze, corridor of 50 steps"),
        (52 / 4 / 51, 0.5, 0.5),
        strict=True,
    ):
        draw_seeds(axes, sort_scores(results.read_scores(name, task)), title, _SUCCESS)
        mark_level(axes, chance, "best without memory")
        axes.set_xlim(-0.03, 1.03)
    add_note(figure, f"{_SEEDS}. Success after training, in 100 new episodes per seed.")
    return figure


def longer(results: Results) -> Figure:
    """Success on longer tasks than in training."""
    figure, panels = make_axes(4, width=4.4, height=4.6, columns=2)
    tests = (
        ("tmaze-families", "tmaze-20", {"corridor_length": 500}, "T-maze, from 20 to 500 steps", 0.5),
        ("tmaze-families", "tmaze-20", {"corridor_length": 10_000}, "T-maze, from 20 to 10,000 steps", 0.5),
        ("tmaze-50", "tmaze", {"corridor_length": 5_000}, "T-maze, from 50 to 5,000 steps", 0.5),
        ("repeat-previous", "repeat-previous", {"num_decks": 10}, "RepeatPrevious, from 1 to 10 decks", 0.25),
    )
    for axes, (name, task, test, title, chance) in zip(panels, tests, strict=True):
        draw_seeds(axes, sort_scores(results.read_scores(name, task, **test)), title, _SUCCESS)
        mark_level(axes, chance, "chance")
        axes.set_xlim(-0.03, 1.03)
    add_note(figure, f"{_SEEDS}. Each test has 100 episodes per seed.")
    return figure


def recall_by_key(results: Results) -> Figure:
    """Accuracy in MQAR by the bytes of the state, at two lengths."""
    sizes = results.read_bytes()
    figure, panels = make_axes(2, width=4.6, height=4.6, sharey=True)
    for axes, length in zip(panels, (64, 1024), strict=True):
        scores = results.read_scores("mqar", "mqar", num_items=8, length=length)
        styles = assign_styles(scores)
        for name in sorted(scores, key=lambda name: (sizes[name], name)):
            mean = np.mean(scores[name])
            spread = [[mean - min(scores[name])], [max(scores[name]) - mean]]
            style = styles[name]
            line = {"color": style.color, "fmt": style.marker, "capsize": 2, "markersize": 6, "linestyle": ""}
            label = f"{name}, {sizes[name]:,} bytes"
            axes.errorbar([sizes[name]], [mean], spread, label=label, **line)
        draw_level(axes, 1 / 8, "any value")
        axes.set_xscale("log")
        axes.set_title(f"MQAR, 8 pairs, {length:,} tokens", fontsize=10)
        axes.set_xlabel("state per sequence, bytes")
        axes.set_ylim(-0.02, 1.04)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(_ACCURACY)
    place_legend(panels[-1])
    add_note(figure, "Points: mean of three seeds; bars: lowest to highest seed. Trained on 64 tokens.")
    return figure


def state(results: Results) -> Figure:
    """Accuracy in parity, S3 and S5 by the length of the sequence."""
    figure, panels = make_axes(3, width=4.8, height=4.0, sharey=True)
    parity = results.read_curves("parity", "parity", "length", num_items=1)
    permutations = results.read_curves("state-tracking", "state-tracking", "length", num_items=1)
    for row in results.read_rows("state-tracking-householders"):
        curve = permutations.setdefault("gated_delta, two writes", defaultdict(list))
        curve[row["test"]["length"]].append(row["score"])
    permutations["gated_delta, one write"] = permutations.pop("gated_delta")
    longer_permutations = results.read_curves("state-tracking-s5", "state-tracking-s5", "length", num_items=4)
    longer_permutations["gated_delta, four writes"] = longer_permutations.pop("gated_delta")
    for axes, curves, title, chance, training_length in zip(
        panels,
        (parity, permutations, longer_permutations),
        ("Parity of the bits so far", "S3, permutations of 3 items", "S5, permutations of 5 items"),
        (1 / 2, 1 / 6, 1 / 120),
        (64, 64, 16),
        strict=True,
    ):
        draw_curves(axes, curves, title, _LENGTH, training_length)
        draw_level(axes, chance, "chance")
        place_legend(axes)
    panels[0].set_ylabel(_ACCURACY)
    add_note(figure, "Lines: mean of the seeds; bands: lowest to highest seed.")
    return figure


def ballet(results: Results) -> Figure:
    """Success in Ballet by reward, and accuracy in the supervised version."""
    figure, panels = make_axes(2, width=4.8, height=4.6)
    # The later runs replace the earlier ones: some windows were then shorter than an episode.
    scores = results.read_scores("ballet", "ballet") | results.read_scores("ballet", "ballet, one search")
    draw_seeds(panels[0], sort_scores(scores), "Ballet by reward, 2 dancers", _SUCCESS)
    mark_level(panels[0], 0.5, "random dancer")
    panels[0].set_xlim(-0.03, 1.03)
    curves = results.read_curves("ballet-probe", "ballet-probe-8", "num_dancers", delay=16)
    draw_curves(panels[1], curves, "Ballet, supervised, trained with 8 dancers", "dancers in the test", 8)
    panels[1].plot([2, 4, 8], [1 / 2, 1 / 4, 1 / 8], color=GREY, linestyle=":", linewidth=1)
    panels[1].text(4, 0.27, "guessing", fontsize=8, color="#444444")
    panels[1].set_ylabel(_ACCURACY)
    place_legend(panels[1])
    add_note(figure, f"Left: {_SEEDS.lower()}. Right: {_BANDS.lower()}.")
    return figure


def clock(results: Results) -> Figure:
    """Success with and without a clock."""
    figure, panels = make_axes(2, height=3.2)
    for axes, task, title in zip(
        panels, ("autoencode", "count-recall"), ("Autoencode, 8 cards", "CountRecall, 12 cards"), strict=True
    ):
        kinds = ((f"{task}, no clock", ORANGE, "s", 0.16), (task, BLUE, "o", -0.16))
        for each, color, marker, shift in kinds:
            scores = results.read_scores("clock", each)
            for place, seeds in enumerate(scores.values()):
                label = ("without clock" if "no clock" in each else "with clock") if not place else None
                draw_dots(axes, seeds, place + shift, color, marker, half=0.14, label=label)
            axes.set_yticks(range(len(scores)), list(scores))
        axes.invert_yaxis()
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(_SUCCESS)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8, frameon=False, loc="lower left")
    add_note(figure, f"{_SEEDS}.")
    return figure


def popgym(results: Results) -> Figure:
    """Return on four tasks of POPGym, with the published return of a GRU."""
    head, rows = results.read_table("popgym", "memory")
    returns_of_authors = dict(zip(head[1:], map(float, rows[-1][1:]), strict=True))
    figure, panels = make_axes(4, width=4.4, height=3.4, columns=2)
    tasks = ("repeat-previous", "autoencode", "count-recall", "cartpole")
    for axes, task, (title, level) in zip(panels, tasks, returns_of_authors.items(), strict=True):
        scores: dict[str, list[float]] = defaultdict(list)
        for row in results.read_rows("popgym", task=f"popgym-{task}", test={}):
            scores[row["memory"]].append(row["return"])
        draw_seeds(axes, sort_scores(scores), title, "return per episode")
        mark_level(axes, level, "published GRU")
    add_note(figure, f"{_SEEDS}. A million steps; the published GRU had 15 million. The largest return is 1.")
    return figure


def tasks(results: Results) -> Figure:
    """Success in MemoryPlanning, and in KeyToDoor by the waiting time."""
    figure, panels = make_axes(2, width=4.8, height=3.6)
    scores = sort_scores(results.read_scores("tasks", "memory-planning"))
    draw_seeds(panels[0], scores, "MemoryPlanning, 2 x 2 grid", _SUCCESS)
    mark_level(panels[0], 0.6, "follows the visible symbols")
    panels[0].set_xlim(-0.03, 1.03)
    curves = results.read_curves("tasks", "key-to-door", "distract_steps")
    draw_curves(panels[1], curves, "KeyToDoor, trained with 10 steps", "waiting time in the test, steps", 10)
    draw_level(panels[1], 0.5, "random door")
    panels[1].set_ylabel(_SUCCESS)
    place_legend(panels[1])
    add_note(figure, f"Left: {_SEEDS.lower()}. Right: {_BANDS.lower()}.")
    return figure


_DEFAULTS = {
    "bsuite-memory": "bsuite memory",
    "bsuite-umbrella": "bsuite umbrella",
    "bsuite-catch": "bsuite catch",
    "door-key": "MiniGrid DoorKey",
    "lava-gap": "MiniGrid LavaGap",
    "red-blue-doors": "MiniGrid RedBlueDoors",
    "hopper-positions": "Hopper, positions only",
    "double-pendulum": "InvertedDoublePendulum",
}


def defaults(results: Results) -> Figure:
    """Return per episode of the default settings and of RecurrentPPO on the test tasks."""
    figure = Figure(figsize=(10.5, 4.4), dpi=150, layout="constrained")
    for axes, (task, title) in zip(figure.subplots(2, 4).flat, _DEFAULTS.items(), strict=True):
        for place, (contender, color, marker) in enumerate(
            (("gru", BLUE, "o"), ("recurrent_ppo", ORANGE, "s"))
        ):
            seeds = [
                row["score"] for row in results.read_rows("defaults-test", task=task, contender=contender)
            ]
            draw_dots(axes, seeds, place, color, marker)
        axes.set_yticks([0, 1], ["gru", "RecurrentPPO"])
        axes.set_ylim(1.6, -0.6)
        if task in ("bsuite-catch", "red-blue-doors"):  # all seeds have one return
            axes.set_xlim(-0.05, 1.05)
        axes.set_title(title, fontsize=8.5)
        axes.set_xlabel("return per episode", fontsize=8)
        axes.grid(alpha=0.3)
    add_note(figure, "Dots: one per seed, five seeds; bars: mean of the seeds. 200,000 steps.")
    return figure


_SCOREBOARD = {
    "repeat-first": "RepeatFirstEasy",
    "position-pendulum": "PositionOnlyPendulumEasy",
    "noisy-cartpole": "NoisyPositionOnlyCartPoleEasy",
    "higher-lower": "HigherLowerEasy",
    "memory-s7": "MiniGrid-MemoryS7",
    "memory-s9": "MiniGrid-MemoryS9",
    "pendulum-positions": "Pendulum-v1, positions only",
    "half-cheetah-positions": "HalfCheetah-v5, positions only",
}


def scoreboard(results: Results) -> Figure:
    """Final score of each memory and of RecurrentPPO on the tasks of the scoreboard."""
    rows = results.read_rows("scoreboard")
    figure, panels = make_axes(8, width=3.2, height=3.2, columns=4)
    for axes, (task, title) in zip(panels, _SCOREBOARD.items(), strict=True):
        scores: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if row["task"] == task:
                scores[row["contender"].replace("recurrent_ppo", "RecurrentPPO")].append(row["score"])
        draw_seeds(axes, sort_scores(scores), title, "return per episode")
    add_note(figure, f"{_SEEDS}. 200,000 frames; 100 episodes after training.")
    return figure


def streaming(results: Results) -> Figure:
    """Perplexity by position in the text."""
    figure, panels = make_axes(2, width=4.8, height=3.6, sharey=True)
    parts = (("gemma", "smollm2-ppl256", "SmolLM2-135M"), ("gemma", "gemma-ppl256", "Gemma-3-270M"))
    for axes, (name, after, title) in zip(panels, parts, strict=True):
        head, rows = results.read_table(name, "tokens", after)
        ends = [int(row[0].split(" to ")[1].replace(",", "")) for row in rows]
        styles = assign_styles(head[1:])
        for column, policy in enumerate(head[1:], start=1):
            values = [float(row[column]) for row in rows]
            axes.plot(ends, values, label=policy, linewidth=2, **styles[policy].as_points())
        axes.set_xscale("log", base=2)
        axes.set_xticks(ends, [f"{end:,}" for end in ends], rotation=30, fontsize=8)
        axes.set_title(f"{title}, 256 keys", fontsize=10)
        axes.set_xlabel("end of the part of the text, tokens")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("perplexity of the part")
    place_legend(panels[-1])
    add_note(figure, "One run over one text. The vertical axis does not begin at 0.")
    return figure


def needles(results: Results) -> Figure:
    """Share of needles found by the length of the text, as heat maps."""
    figure, panels = make_axes(2, width=5.0, height=3.6)
    for axes, first, title in zip(
        panels, ("256", "1024"), ("256 keys, 5 depths", "1,024 keys, 3 depths"), strict=True
    ):
        head, rows = results.read_table("longcontext", "task, method", f"--budget {first} --lengths")
        values = np.array([[float(cell) for cell in row[2:]] for row in rows])
        axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(head) - 2), head[2:])
        axes.set_yticks(range(len(rows)), [row[0].partition(", ")[2] for row in rows])
        axes.set_xlabel("tokens of the text")
        axes.set_title(f"Needles found, %: SmolLM2, {title}", fontsize=10)
    add_note(figure, "The model was trained on texts of 8,192 tokens. One needle per depth and length.")
    return figure


def sinks(results: Results) -> Figure:
    """Success of the memory `sink` by its number of sinks."""
    figure, panels = make_axes(3, width=3.2, height=3.0)
    for axes, length in zip(panels, (20, 500, 10_000), strict=True):
        scores: dict[str, list[float]] = defaultdict(list)
        for row in results.read_rows("sinks", test={"corridor_length": length}):
            scores[f"{row['num_sinks']}"].append(row["score"])
        for place, seeds in enumerate(scores.values()):
            draw_dots(axes, seeds, place, BLUE, "o")
        axes.set_yticks(range(len(scores)), list(scores))
        axes.set_ylim(len(scores) - 0.4, -0.6)
        axes.set_ylabel("number of sinks")
        axes.set_title(f"{_CORRIDOR}: {length:,}", fontsize=9)
        axes.set_xlabel(_SUCCESS)
        axes.set_xlim(-0.03, 1.03)
        mark_level(axes, 0.5, "chance")
        axes.grid(alpha=0.3)
    add_note(figure, f"{_SEEDS}, three seeds. Trained at 20 steps with a window of 8.")
    return figure


def outliers(results: Results) -> Figure:
    """Share of values that untrained memories recall, by the factor of the outliers."""
    curves: dict[str, Seeds] = defaultdict(lambda: defaultdict(list))
    for row in results.read_rows("outliers"):
        curves[row["memory"]][row["times"]].append(row["right"])
    figure, (axes,) = make_axes(1, width=6.4, height=3.6)
    styles = assign_styles(curves)
    for name, by_factor in curves.items():
        at = sorted(by_factor)
        values = np.transpose([by_factor[factor] for factor in at])
        draw_mean(axes, at, values, f"{name} (3 seeds)", styles[name])
    set_log_ticks(axes, [1, 3, 10, 100, 1000])
    draw_level(axes, 1 / 48, "chance")
    axes.set_xlabel("factor of the outliers")
    axes.set_ylabel("share of the other values recalled")
    axes.set_title("Recall of untrained neural memories", fontsize=10)
    axes.grid(alpha=0.3)
    place_legend(axes)
    add_note(figure, _BANDS + ".")
    return figure


def bank(results: Results) -> Figure:
    """MRR and recall @10 of each search, on public and on self-made data."""
    tables = {
        "public sets": results.read_table("recall", "mean of 5 sets"),
        "self-made sets": results.read_table("recall", "mean of 4 sets"),
    }
    figure, panels = make_axes(2, width=4.6, height=3.8, sharey=True)
    head, rows = tables["public sets"]
    order = sorted(
        (row for row in rows if not _is_extension(row)), key=lambda row: -float(row[head.index("@10")])
    )
    names = [row[0].strip("*") for row in order]
    for axes, (title, (head, rows)) in zip(panels, tables.items(), strict=True):
        by_name = {row[0].strip("*"): row for row in rows}
        colors = [BLUE if name.startswith("MemoryBank") else GREY for name in names]
        for shift, measure, alpha in ((-0.2, "MRR", 0.55), (0.2, "@10", 1.0)):
            values = [float(by_name[name][head.index(measure)]) for name in names]
            bars = axes.barh(np.arange(len(names)) + shift, values, 0.38, color=colors, alpha=alpha)
            axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("MRR (light) and recall @10")
    panels[0].invert_yaxis()
    add_note(figure, "Means over five public and four self-made data sets, with MiniLM.")
    return figure


def _is_extension(row: list[str]) -> bool:
    """Return True for a variant of the bank that needs more than its records and embeddings."""
    return any(word in row[0] for word in ("surprise", "neural", "annotated"))


def facts(results: Results) -> Figure:
    """Share of exact answers by memory and reader."""
    figure, panels = make_axes(2, width=4.8, height=3.6, sharey=False)
    for axes, first, title in zip(
        panels, ("arm, words alone", "arm, with MiniLM"), ("words alone", "with MiniLM"), strict=True
    ):
        head, rows = results.read_table("facts", first)
        every = [row for row in rows if row[1] == "all"]
        names = [row[0].partition(", cut")[0] for row in every]
        values = [float(row[head.index("exact")]) for row in every]
        bars = axes.barh(names, values, color=[BLUE if "newest" in name else ORANGE for name in names])
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_xlim(0, 1.2)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("share of exact answers")
    add_note(figure, "240 questions. Blue: the reader takes the newest fact; orange: the first.")
    return figure


def robustness(results: Results) -> Figure:
    """Files of the fuzzer that were accepted and refused."""
    _, rows = results.read_table("fuzzing", "kind of input")
    rows = [row for row in rows if row[0] != "all"]
    names = [row[0] for row in rows]
    num_accepted, num_refused = ([int(row[column]) for row in rows] for column in (2, 3))
    figure, (axes,) = make_axes(1, width=6.6, height=3.6)
    axes.barh(names, num_accepted, color=BLUE, label="accepted")
    axes.barh(names, num_refused, left=num_accepted, color=ORANGE, label="refused")
    axes.invert_yaxis()
    axes.set_xlabel("tries with changed files")
    axes.set_title("Fuzzing for two hours", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


_DELAYS = (16, 24, 32, 48)
_TESTS = {
    "tmaze-50-tested-longer": ("tmaze-50", "tmaze", "corridor_length", [{}], 50, 0.5),
    "tmaze-families-tested-longer": ("tmaze-families", "tmaze-20", "corridor_length", [{}], 20, 0.5),
    "repeat-previous-tested-longer": ("repeat-previous", "repeat-previous", "num_decks", [{}], 1, 52 / 204),
    "tasks-tested-longer": ("tasks", "key-to-door", "distract_steps", [{}], 10, 0.5),
    "parity-lengths": ("parity", "parity", "length", [{"num_items": 1}], 64, 1 / 2),
    "state-tracking-lengths": ("state-tracking", "state-tracking", "length", [{"num_items": 1}], 64, 1 / 6),
    "state-tracking-s5-lengths": (
        "state-tracking-s5", "state-tracking-s5", "length", [{"num_items": 4}], 16, 1 / 120,
    ),
    "mqar-all-lengths": (
        "mqar", "mqar", "length", [{"num_items": pairs} for pairs in (2, 4, 8, 16)], 64, None,
    ),
    "ballet-probe-delays": (
        "ballet-probe", "ballet-probe-8", "delay", [{"num_dancers": each} for each in (2, 4, 8)], 16, None,
    ),
    "ballet-probe-dancers": (
        "ballet-probe", "ballet-probe-8", "num_dancers", [{"delay": each} for each in _DELAYS], 8, None,
    ),
}  # fmt: skip
"""Figures of reports: file, task, setting on the axis, other settings by panel, training value, chance."""


def draw_tests(results: Results, figure_name: str) -> Figure:
    """Draw the scores of a task by a setting of the test."""
    name, task, along, conditions, training_value, chance = _TESTS[figure_name]
    is_single = len(conditions) == 1
    figure, panels = make_axes(len(conditions), *((6.4, 4.6) if is_single else (3.2, 3.8)), sharey=True)
    if not is_single:
        figure.suptitle(task_title(task), fontsize=10)
    for axes, others in zip(panels, conditions, strict=True):
        title = ", ".join(f"{key.removeprefix('num_')} (test): {value}" for key, value in others.items())
        curves = results.read_curves(name, task, along, **others)
        unit = f"{along.removeprefix('num_').replace('_', ' ')} (test)"
        draw_curves(axes, curves, task_title(task) if is_single else title, unit, training_value)
        count = others.get("num_items", others.get("num_dancers"))
        if chance is not None:
            draw_level(axes, chance, "without memory")
        elif count is not None:
            draw_level(axes, 1 / count, "guessing")
    panels[0].set_ylabel(_ACCURACY if along == "length" or name == "ballet-probe" else _SUCCESS)
    place_legend(panels[-1])
    add_note(figure, _BANDS + ".")
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    f"question-{draw.__name__.replace('_', '-')}": draw
    for draw in (
        remember, longer, recall_by_key, state, ballet, clock, popgym, tasks, defaults, scoreboard, streaming,
        needles, sinks, outliers, bank, facts, robustness,
    )
}  # fmt: skip
FIGURES |= {name: functools.partial(draw_tests, figure_name=name) for name in _TESTS}
"""Figures by the name of their file."""


def draw_figures(folder: Path, names: Iterable[str] = FIGURES) -> list[Path]:
    """Draw figures into the folder of their rows, as PNG and SVG; return the paths."""
    results, paths = Results(folder), []
    with mpl.rc_context({"svg.hashsalt": "scrubjay", "svg.fonttype": "none"}):
        for name in names:
            figure = FIGURES[name](results)
            paths += [save_figure(figure, folder / f"{name}{ending}") for ending in (".png", ".svg")]
    return paths


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "experiments/results")
    for path in draw_figures(where, sys.argv[2:] or FIGURES):
        print(path)
