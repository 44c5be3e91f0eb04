"""Tests of the long-context plots."""

import numpy as np
import pytest

from scrubjay.experiments.lm import plots
from scrubjay.experiments.lm.reading import Curve

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture
def make_figure(monkeypatch, tmp_path):
    """Plot, and return the figure instead of its file."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, out: figures.append(figure) or out)

    def draw(plot, *arguments):
        assert plot(*arguments, tmp_path / "x.png") == tmp_path / "x.png"
        return figures.pop()

    return draw


def blocks(*nats):
    return [{"nats": [value] * 8, "cpu": 0.4, "resident": 2**30 * (1 + i)} for i, value in enumerate(nats)]


def test_perplexity_is_drawn_where_it_was_measured(make_figure):
    figure = make_figure(plots.plot_perplexity, {"steady": Curve(blocks(1.0, 1.0, 1.0))})
    quality, speed, memory = figure.axes
    (line,) = quality.lines
    np.testing.assert_allclose(line.get_ydata(), np.e)
    assert line.get_xdata()[0] < line.get_xdata()[-1] < 24
    np.testing.assert_allclose(speed.lines[0].get_ydata(), 50.0)
    assert list(speed.lines[0].get_xdata()) == [8, 16, 24]
    assert list(memory.lines[0].get_ydata()) == [1, 2, 3]


def test_a_short_last_block_tells_nothing_of_speed(make_figure):
    short = {"nats": [1.0], "cpu": 9.0, "resident": 2**30}
    figure = make_figure(plots.plot_perplexity, {"cut": Curve([*blocks(1.0, 1.0), short])})
    assert list(figure.axes[1].lines[0].get_xdata()) == [8, 16]


def test_a_map_has_each_cells_mean_and_leaves_out_what_is_not_there(make_figure):
    rows = [
        {"task": "needle", "depth": depth, "length": length, "method": "full", "score": score}
        for depth, length, score in ((0.0, 1024, 1.0), (0.0, 1024, 0.5), (50.0, 2048, 0.0))
    ]
    rows.append({"task": "single_1", "depth": None, "length": 2048, "method": "sinks", "score": 1.0})
    axes = make_figure(plots.plot_haystack, rows, ["full", "sinks"]).axes
    scores = np.ma.filled(np.ma.masked_invalid(axes[0].images[0].get_array()), -1.0)
    assert scores.tolist() == [[75, -1], [-1, 0], [-1, -1]]
    assert [text.get_text() for text in axes[0].texts] == ["75", "0"]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["0 %", "50 %", "single_1"]
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["1k", "2k"]
    assert [axis.get_title() for axis in axes[:2]] == ["full", "sinks"]


def test_speed_shows_the_median_and_the_extremes(make_figure):
    rows = [{"method": "full", "context": 256, "cpu": cpu} for cpu in (0.003, 0.001, 0.002)]
    rows.append({"method": "full", "context": 1024, "cpu": 0.004})
    (axes,) = make_figure(plots.plot_speed, rows).axes
    ((line, _, (bars,)),) = axes.containers
    assert list(line.get_xdata()) == [256, 1024]
    np.testing.assert_allclose(line.get_ydata(), [2, 4])
    spans = [segment[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(spans, [[1, 3], [4, 4]])


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (999, "999"),
        (1000, "1k"),
        (1024, "1k"),
        (1500, "1.5k"),
        (65536, "64k"),
        (2**20, "1M"),
        (10**6, "1000k"),
    ],
)
def test_numbers_of_tokens_are_short(number, label):
    assert plots._short(number) == label
