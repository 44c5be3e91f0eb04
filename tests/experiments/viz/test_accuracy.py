"""Accuracy plots: each curve is the mean over seeds at the tested sizes."""

import numpy as np
import pytest

from scrubjay.experiments.viz import accuracy

from .results import CONFIG, create_answer_run

RIGHT = ({(2, 16): 10, (4, 16): 8, (2, 32): 9, (4, 32): 4}, {(2, 16): 10, (4, 16): 6, (2, 32): 5, (4, 32): 2})


@pytest.fixture
def runs(tmp_path):
    gru_runs = [create_answer_run(tmp_path, "gru", seed, right, 512) for seed, right in enumerate(RIGHT)]
    return [*gru_runs, create_answer_run(tmp_path, "none", 0, dict.fromkeys(RIGHT[0], 1), 64)]


@pytest.fixture
def draw_axes(monkeypatch, runs, tmp_path):
    """Return a function that plots the runs and returns the axes."""
    figures = []
    monkeypatch.setattr(accuracy, "save_figure", lambda figure, out: figures.append(figure) or out)

    def draw(plot):
        plot(runs, tmp_path / "x.png")
        return figures.pop().axes

    return draw


def curve(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return dict(zip(line.get_xdata(), np.round(line.get_ydata(), 9), strict=True))


def test_a_panel_for_each_amount_to_remember_has_accuracy_by_length(draw_axes):
    few, many = draw_axes(accuracy.plot_spans)
    assert curve(few, "gru") == {16: 1.0, 32: 0.7}
    assert curve(many, "gru") == {16: 0.7, 32: 0.3}
    assert curve(many, "none") == {16: 0.1, 32: 0.1}
    assert many.get_title().endswith(", as in training")
    assert not few.get_title().endswith(", as in training")
    for axes in (few, many):
        assert set(curve(axes, "guessing").values()) == {round(CONFIG.chance(4), 9)}
        assert 16 in curve(axes, "training value")


def test_amounts_are_compared_at_the_trained_length(draw_axes):
    (axes,) = draw_axes(accuracy.plot_counts)
    assert curve(axes, "gru") == {2: 1.0, 4: 0.7}
    assert 4 in curve(axes, "training maximum")


def test_sizes_that_not_all_seeds_were_tested_at_are_left_out(tmp_path, runs, draw_axes):
    runs.append(create_answer_run(tmp_path, "gru", 2, {(4, 16): 1, (4, 64): 9}, 512))
    panels = draw_axes(accuracy.plot_spans)
    assert curve(panels[1], "gru") == {16: 0.5}
    (axes,) = draw_axes(accuracy.plot_counts)
    assert curve(axes, "gru") == {4: 0.5}


def test_a_contenders_point_is_its_mean_with_least_and_most_at_its_state(draw_axes):
    (axes,) = draw_axes(accuracy.plot_state)
    points = {}
    for container in axes.containers:
        line, _, (bars,) = container
        points[container.get_label()] = (*line.get_xydata()[0].tolist(), *bars.get_segments()[0][:, 1])
    np.testing.assert_allclose(points["gru"], (512, 0.7, 0.6, 0.8))
    np.testing.assert_allclose(points["none"], (64, 0.1, 0.1, 0.1))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "gru"]  # by their state


def test_sizes_of_one_memory_are_points_of_one_line(draw_axes, runs, tmp_path):
    right = dict.fromkeys(RIGHT[0], 3)
    runs.append(create_answer_run(tmp_path / "small", "gru", 0, right, 128))
    (axes,) = draw_axes(accuracy.plot_state)
    (small,) = [box for box in axes.containers if box.get_label() == "gru"]
    np.testing.assert_allclose(small[0].get_xydata(), [(128, 0.3), (512, 0.7)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none", "gru"]


def test_runs_that_tell_no_bytes_are_named(runs, finished_run, tmp_path):
    with pytest.raises(ValueError, match=r"has no state size; plot runs of sequence tasks, such as mqar"):
        accuracy.plot_state([*runs, finished_run], tmp_path / "x.png")
