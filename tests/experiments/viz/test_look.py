"""The look command and function, on runs and stored traces."""

import numpy as np
import pytest
from PIL import Image

import scrubjay
from scrubjay.experiments import Run
from scrubjay.experiments.viz.look import FORMATS, recall_maps
from scrubjay.experiments.viz.trace import Recall, Step, Trace, read_trace, write_trace


def test_a_run_is_looked_at_by_the_command(finished_run, here, tmp_path):
    code, out, err = here("look", finished_run.path, "--episode", 3, "--out", tmp_path / "look.json")
    assert (code, err) == (0, "")
    trace = read_trace(tmp_path / "look.json")
    assert out.splitlines()[-1].endswith(f"{trace.title}, {len(trace.steps)} steps")
    assert trace == scrubjay.look(finished_run.path, episode=3).trace
    assert trace.about["memory"] == "gru"
    code, out, err = here("look", tmp_path / "look.json")
    assert (code, err) == (0, "")
    assert "<title>" in (tmp_path / "look.html").read_text("utf-8")


def test_settings_lead_to_other_places(finished_run, here, tmp_path):
    out = tmp_path / "look.json"
    assert here("look", finished_run.path, "--set", "corridor_length=9", "--out", out)[0] == 0
    assert read_trace(out).about["corridor_length"] == "9"
    same = scrubjay.look(Run.load(finished_run.path), settings={"corridor_length": 9})
    assert same.trace == read_trace(out)


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("ending", FORMATS)
def test_it_is_kept_as_the_name_says(episode, tmp_path, ending):
    look = scrubjay.look(episode)
    path = look.save(tmp_path / "new" / f"look{ending}")
    assert path.stat().st_size > 1000
    if ending == ".png":
        with Image.open(path) as picture:
            assert len(picture.convert("L").getcolors(256) or []) > 20


def test_a_map_of_steps_side_by_side_has_the_largest_weights(episode):
    whole, small = recall_maps(episode), recall_maps(episode, 4, 2)
    assert list(small) == list(whole)[:2]
    for name, rows in small.items():
        for place in np.ndindex(*rows.shape):
            step, sources = (slice(4 * at, 4 * at + 4) for at in place)
            assert rows[place] == whole[name][step, sources].max()


@pytest.mark.slow
def test_a_strangers_trace_is_drawn_however_long_it_is_and_whatever_its_name_is(here, tmp_path):
    """A full map of 30,000 by 30,000 steps would take 3.6 GB."""
    steps = [Step(number) for number in range(30_000)]
    steps[-1] = Step(30_000, recalls=(Recall.from_weights("\ud800 $\\bad$", [0], [1.0]),))
    write_trace(Trace("policy", "\ud800 \U0001f600 $x^$", tuple(steps)), tmp_path / "long.json")
    code, out, err = here("look", tmp_path / "long.json", "--out", tmp_path / "long.png")
    assert code == 0, err
    assert r"\ud800" in out
    assert tall(tmp_path / "long.png") == pytest.approx(2.8 + 0.6, abs=0.02)


@pytest.mark.slow
def test_of_many_tracks_and_recalls_the_first_are_drawn(tmp_path):
    sources = tuple(Recall.from_weights(f"{number}", [0], [1.0]) for number in range(20))
    tracks: dict[str, tuple[float | None, ...]] = {f"{number}": (0.0, 1.0) for number in range(400)}
    wide = Trace("policy", "many", (Step(0), Step(1, recalls=sources)), tracks=tracks)
    height = 48 * 1.1 + 12 * 2.8 + 0.6
    assert tall(scrubjay.look(wide).save(tmp_path / "wide.png")) == pytest.approx(height, abs=0.02)


def tall(path):
    """Return the height of a picture in inches."""
    with Image.open(path) as picture:
        return picture.height / 150


def test_a_notebook_shows_it(episode):
    html = scrubjay.look(episode)._repr_html_()
    assert html.startswith('<iframe sandbox="allow-scripts"')
    assert "allow-same-origin" not in html


def test_what_cannot_be_looked_at_is_told_in_a_line(here, finished_run, tmp_path):
    (tmp_path / "note.json").write_text("{}")
    write_trace(Trace("policy", "nothing", ()), tmp_path / "nothing.json")
    for words, message in (
        (["nowhere"], "no run at nowhere"),
        ([tmp_path / "note.json"], "is not a Scrubjay trace"),
        ([tmp_path / "nothing.json", "--out", tmp_path / "x.png"], "there is nothing to draw"),
        ([finished_run.path, "--out", "x.gif"], "name it x.html"),
        ([finished_run.path, "--max-steps", "0"], "max_steps=0"),
        ([finished_run.path, "--set", "wings=2"], "wings"),
    ):
        code, _, err = here("look", *words)
        assert code == 2, words
        assert message in err
        assert err.count("\n") == 1
