"""Learning curves, labels and legends of plots, and styles that can be told apart with any color vision."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scrubjay.experiments import Run, train
from scrubjay.experiments.viz import curves
from scrubjay.experiments.viz.curves import label_runs, plot_longer, plot_runs
from scrubjay.experiments.viz.style import COLORS, GREY, assign_colors, assign_styles
from scrubjay.memory import list_memories, make_config

from ..pictures import assert_picture


def test_plot_of_several_runs(finished_run, tiny, tmp_path):
    other = train(tiny("none", seed=1), tmp_path / "other")
    again = train(tiny("none", seed=2), tmp_path / "again")
    assert_picture(plot_runs([finished_run, other, again], tmp_path / "new" / "plot.png"))
    single_plot = plot_runs([finished_run], tmp_path / "new" / "plot of one")
    assert (single_plot.name, single_plot.exists()) == ("plot of one.png", True)
    assert label_runs([finished_run, other, again]) == {finished_run: "gru", other: "none", again: "none"}
    with pytest.raises(ValueError, match=r"no metric 'charts/joy'; it has .*charts/success"):
        plot_runs([finished_run], tmp_path / "x.png", metric="charts/joy")


def test_memories_of_one_name_are_told_apart_by_the_sizes_they_differ_in(finished_run):
    def with_sinks(number, seed):
        memory = make_config("sink", dim=16, num_sinks=number)
        policy = dataclasses.replace(finished_run.config.policy, memory=memory)
        return Run(finished_run.path, dataclasses.replace(finished_run.config, policy=policy, seed=seed))

    runs = [with_sinks(0, 0), with_sinks(4, 0), with_sinks(4, 1)]
    assert list(label_runs(runs).values()) == ["sink, num sinks 0", "sink, num sinks 4", "sink, num sinks 4"]
    assert list(label_runs(runs[1:]).values()) == ["sink", "sink"]


def test_runs_of_one_memory_are_told_apart_by_what_else_was_asked_of_them(finished_run):
    config = finished_run.config

    def make_run(seed, **fields):
        return Run(finished_run.path, dataclasses.replace(config, seed=seed, **fields))

    with_clock = dataclasses.replace(config.policy, clock=True)
    assert list(label_runs([make_run(0), make_run(1), make_run(0, policy=with_clock)]).values()) == [
        "gru, clock False",
        "gru, clock False",
        "gru, clock True",
    ]
    faster = dataclasses.replace(config.learner, learning_rate=0.5)
    assert label_runs([make_run(0), make_run(0, learner=faster)]).popitem()[1] == "gru, learning rate 0.5"
    longer = dataclasses.replace(config.env, kwargs={**config.env.kwargs, "num_decks": 3})
    assert label_runs([make_run(0), make_run(0, env=longer)]).popitem()[1] == "gru, num decks 3"
    # Runs of other tasks have their own panel, and the number of steps makes no difference.
    assert set(label_runs([make_run(0), make_run(0, env=longer, recipe="another")]).values()) == {"gru"}
    assert set(label_runs([make_run(0), make_run(1, total_steps=2 * config.total_steps)]).values()) == {"gru"}


@pytest.mark.parametrize("names", [1, 18, 19, 40])
def test_a_legend_of_many_names_stays_in_the_picture(names, tmp_path):
    figure = curves.make_figure(1)
    axes = figure.subplots()
    for name in range(names):
        axes.plot([0, 1], [0, 1], label=f"gated_delta {name} (3 seeds)")
    curves.place_legend(axes)
    curves.save_figure(figure, tmp_path / "picture.png")
    legend = axes.get_legend()
    assert legend is not None
    inside, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0
    assert inside.x1 <= whole.x1
    assert whole.y0 <= inside.y0
    assert inside.y1 <= whole.y1
    assert axes.get_window_extent().x1 <= inside.x0  # and covers no curve
    assert axes.get_window_extent().width > 400


def row(step, **charts):
    return json.dumps({"step": step} | {f"charts/{name}": value for name, value in charts.items()}) + "\n"


@pytest.fixture
def draw_figure(monkeypatch, tmp_path):
    """Return a function that plots and returns the figure."""
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, out: figures.append(figure) or out)

    def draw(plot, *arguments):
        plot(*arguments, tmp_path / "x.png")
        return figures.pop()

    return draw


def store_rows(config, path, *rows, is_finished=True):
    run = Run.create(config, path)
    (run.path / "metrics.jsonl").write_text("".join(rows))
    if is_finished:
        (run.path / "result.json").write_text("{}")
    return run


def test_every_curve_is_drawn_to_its_end_and_averaged_where_all_seeds_have_points(
    tiny, tmp_path, draw_figure
):
    runs = [
        store_rows(
            tiny(seed=seed),
            tmp_path / str(seed),
            row(20, success=success, episodic_return=0),
            row(last, success=success, episodic_return=9),
            is_finished=last == 100,
        )
        for seed, (last, success) in enumerate(((100, 0.2), (60, 0.6)))
    ]
    (axes,) = draw_figure(plot_runs, runs).axes
    mean = next(line for line in axes.lines if line.get_label() == "gru (2 seeds)")
    assert (mean.get_xdata()[0], mean.get_xdata()[-1]) == (20, 60)
    np.testing.assert_allclose(mean.get_ydata(), 0.4)
    longer = next(line for line in axes.lines if list(line.get_xdata()) == [60, 100])
    np.testing.assert_allclose(longer.get_ydata(), 0.2)
    cut = next(line for line in axes.lines if line.get_marker() == "x" and len(line.get_xdata()))
    assert (list(cut.get_xdata()), list(cut.get_ydata())) == ([60], [0.6])
    assert "not finished" in [line.get_label() for line in axes.lines]
    assert axes.get_title() == "tiny"
    (axes,) = draw_figure(plot_runs, runs[:1]).axes
    assert "not finished" not in [line.get_label() for line in axes.lines]


def test_a_run_that_awaits_only_its_evaluation_has_no_cross(tiny, tmp_path, draw_figure):
    config = tiny()
    last = row(config.planned_steps, success=1.0, episodic_return=1)
    run = store_rows(config, tmp_path / "run", row(20, success=0, episodic_return=0), last, is_finished=False)
    (axes,) = draw_figure(plot_runs, [run]).axes
    assert "not finished" not in [line.get_label() for line in axes.lines]


def test_seeds_without_a_common_step_have_no_mean(tiny, tmp_path, draw_figure):
    steps = ((20, 40), (60, 100))
    runs = [
        store_rows(tiny(seed=seed), tmp_path / str(seed), *(row(step, success=0.5) for step in of))
        for seed, of in enumerate(steps)
    ]
    (axes,) = draw_figure(plot_runs, runs).axes
    assert [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata())][:2] == [
        [20, 40],
        [60, 100],
    ]


def test_a_run_without_a_finished_episode_is_left_out(tiny, tmp_path, draw_figure, caplog):
    runs = [
        store_rows(tiny(seed=0), tmp_path / "0", row(20, success=0.5, episodic_return=1) * 2),
        store_rows(tiny(seed=1), tmp_path / "1", row(20, SPS=100), is_finished=False),
    ]
    (axes,) = draw_figure(plot_runs, runs).axes
    assert axes.get_ylabel() == curves.LABELS["charts/success"]
    assert "gru" in [line.get_label() for line in axes.lines]
    assert f"{runs[1].path} is not drawn: no episode has ended yet" in caplog.text
    with pytest.raises(ValueError, match=r"1: no training episode has ended yet, so there is no"):
        draw_figure(plot_runs, runs[1:])


def test_settings_of_one_seed_are_runs_and_no_seeds(tiny, tmp_path, draw_figure):
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        run = Run.create(tiny(seed=seed), tmp_path / str(number))
        (run.path / "metrics.jsonl").write_text(row(20, success=0.5, episodic_return=0) * 2)
        runs.append(run)
    for count, label in ((1, "gru"), (2, "gru (2 runs of 1 seed)"), (3, "gru (3 runs of 2 seeds)")):
        (axes,) = draw_figure(plot_runs, runs[:count]).axes
        assert label in [line.get_label() for line in axes.lines]


def test_what_was_tested_longer_is_drawn_by_the_setting_that_made_it_so(tiny, tmp_path, draw_figure):
    runs = [Run(tmp_path, tiny(recipe="repeat-previous", seed=seed)) for seed in (0, 1)]
    scores = [(runs[0], {1: 1.0, 5: 0.5}), (runs[1], {1: 0.8, 5: 0.1})]
    (axes,) = draw_figure(plot_longer, scores).axes
    assert axes.get_xlabel() == "num decks (test)"
    (curve, trained_line) = axes.lines
    np.testing.assert_allclose(curve.get_ydata(), [0.9, 0.3])
    assert set(trained_line.get_xdata()) == {1}


def test_a_level_is_labeled_in_the_axes_and_not_in_the_legend(draw_figure, tmp_path):
    figure = curves.make_figure(1)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label="gru")
    curves.draw_level(axes, 0.25, "guessing")
    curves.place_legend(axes)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["gru"]
    assert [text.get_text() for text in axes.texts] == ["guessing (0.25)"]


def test_dots_mark_the_evaluations_of_the_metric(tiny, tmp_path, draw_figure):
    evaluation = {"step": 60, "charts/success": 0.5, "eval/success": 0.9, "eval/episodic_return": 7.0}
    rows = [row(20, success=0.1), json.dumps(evaluation) + "\n", row(100, success=0.6)]
    run = store_rows(tiny(), tmp_path / "run", *rows)
    (axes,) = draw_figure(plot_runs, [run]).axes
    (dots,) = [line for line in axes.lines if line.get_marker() == "." and len(line.get_xdata())]
    assert (list(dots.get_xdata()), list(dots.get_ydata())) == ([60], [0.9])
    assert "evaluation" in [line.get_label() for line in axes.lines]
    plain = store_rows(tiny(), tmp_path / "plain", rows[0], rows[2])
    (axes,) = draw_figure(plot_runs, [plain]).axes
    assert not [line for line in axes.lines if line.get_marker() == "."]


VISION = {
    "all cones": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Matrices of linear RGB by Machado, Oliveira and Fernandes (2009)."""


def lab(color, matrix):
    """Return the CIELAB coordinates of a color as someone with this vision sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    view = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ view / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colors_differ_for_any_color_vision(vision):
    for one, other in itertools.combinations([*COLORS, GREY], 2):
        distance = np.linalg.norm(lab(one, VISION[vision]) - lab(other, VISION[vision]))
        assert distance > 12, (one, other)


@given(st.sets(st.sampled_from(list_memories()), min_size=1))
def test_a_memory_has_its_own_style_among_any_others(names):
    alone = {name: assign_styles([name])[name] for name in names}
    assert assign_styles(names) == alone
    assert len(set(alone.values())) == len(names)


def test_memories_that_are_often_compared_differ_in_color():
    colors = assign_colors(["none", "gru", "lstm", "gtrxl", "hcam", "titans", "sink", "gated_delta"])
    assert len(set(colors.values())) == 8


def test_sizes_of_one_memory_have_its_color_and_different_lines():
    styles = assign_styles(["hcam, chunk size 8", "hcam, chunk size 16", "gru"])
    assert styles["hcam, chunk size 16"] == assign_styles(["hcam"])["hcam"]
    assert styles["hcam, chunk size 8"].color == styles["hcam, chunk size 16"].color
    assert len(set(styles.values())) == 3


def test_other_labels_get_the_styles_that_are_left():
    styles = assign_styles(["b", "a", "b", "gru"])
    assert len({style.color for style in styles.values()}) == 3
    assert list(styles) == ["gru", "a", "b"]
    many = assign_styles(str(number) for number in range(40))
    assert len(set(many.values())) == 35
