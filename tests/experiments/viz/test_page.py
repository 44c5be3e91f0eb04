"""The page in a real browser: navigation works, and untrusted text has no effect."""

import dataclasses
import html
import re

import pytest

from scrubjay.experiments.viz.html_document import render_frame
from scrubjay.experiments.viz.look import render_page
from scrubjay.experiments.viz.trace import Recall, Step, Trace, from_json, to_json

from .test_trace import PICTURE

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</SCRIPT ><img src=x onerror=alert(1)>",
    "<!--<script>",
    "-->",
    "]]>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe src='javascript:alert(1)'></iframe>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{background:url(https://example.org/x)}</style>",
    "<link rel=stylesheet href=https://example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "<base href='https://example.org/'>",
    "<form action='https://example.org'><input name=q autofocus></form>",
    "<object data='https://example.org/x'></object>",
    "<details open ontoggle=alert(1)>",
    "${alert(1)}{{constructor.constructor('alert(1)')()}}",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "\u2028alert(1)\u2029",
    "\ud800 \U0001f600 \x00 \x1b[31m \u202e",
    "@script@ @style@ @policy@ @trace@",
    "__proto__",
    "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "javascript:alert(1)",
    "'); alert(1); ('",
    "*/ alert(1) /*",
)


def hostile(text: str) -> Trace:
    """Return a trace with this text in every text field."""
    recalls = Recall.from_weights(text, [0], [1.0]), Recall.from_weights(f"{text} 2", [0, 1], [0.5, 0.5])
    steps = (
        Step(0, 0, text, text, {text: 0.25, "plain": 0.75}),
        Step(1, None, text, text, {}, recalls),
    )
    tables = {text: {text: (0.5, 1.0)}}
    return Trace("agent", text, steps, {text: text}, text, 10.0, (PICTURE,), {text: (0.0, None)}, tables)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_the_data_it_is_in(text):
    plain, spoilt = render_page(hostile("x")), render_page(hostile(text))
    data_pattern = re.compile(r'(<script type="application/json" id="trace">)(.*?)(</script>)', re.DOTALL)
    # Everything but the data is unchanged, and the data has no markup characters.
    assert data_pattern.sub(r"\1\3", spoilt) == data_pattern.sub(r"\1\3", plain)
    match = data_pattern.search(spoilt)
    assert match
    assert not set(match[2]) & set("<>&'")
    assert from_json(match[2]) == hostile(text)
    assert (
        html.unescape(render_frame(render_page(hostile(text))).split('srcdoc="')[1].split('"')[0]) == spoilt
    )


def test_the_page_asks_for_nothing_and_runs_its_own_script_alone():
    text = render_page(hostile("x"))
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "unsafe" not in policy[1]


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "text", [*HOSTILE[:8], *(pytest.param(text, marks=pytest.mark.slow) for text in HOSTILE[8:])]
)
def test_a_browser_shows_a_strangers_text_and_runs_none(open_page, text):
    tab = open_page(render_page(hostile(text)))
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.getElementById('title').textContent") == text
    assert tab.evaluate("document.getElementById('said').textContent") == text
    assert tab.evaluate("document.querySelectorAll('#read option').length") == 2
    wild = "script:not(#trace), iframe, object, a, svg, form, link, base, details, [onerror], [onload]"
    assert tab.evaluate(f"document.querySelectorAll({wild!r}).length") == 1
    assert tab.url.startswith("file:")


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("text", HOSTILE[::5])
def test_a_model_s_words_are_shown_and_run_nothing(open_page, text):
    recalls = tuple(
        Recall.from_weights(name, [0, 1], [1.0, 0.5]) for name in ("kept", "read", "fetched", text)
    )
    steps = Step(0, text=text), Step(1, text=text, choice=text, options={text: 0.5}, recalls=recalls)
    tab = open_page(render_page(Trace("language model", text, steps, tables={text: {text: (0.0, 1.0)}})))
    assert tab.evaluate("document.getElementById('said').textContent") == 2 * text
    assert tab.evaluate("document.querySelector('#tables .label').textContent") == text
    assert tab.evaluate("[...document.querySelectorAll('#tables .cell')].map(c => c.textContent)") == [
        "0",
        "1",
    ]
    wild = "script:not(#trace), iframe, object, a, svg, form, link, base, details, [onerror], [onload]"
    assert tab.evaluate(f"document.querySelectorAll({wild!r}).length") == 1


def at(tab):
    return int(tab.evaluate("document.getElementById('slider').value"))


def test_steps_are_walked_by_keys_buttons_slider_and_clicks(open_page, episode):
    last = len(episode.steps) - 1
    tab = open_page(render_page(episode))
    assert at(tab) == 0
    for key, where in (
        *(("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("PageDown", 11), ("PageUp", 1)),
        *(("End", last), ("Home", 0)),
    ):
        tab.keyboard.press(key)
        assert at(tab) == where
    tab.keyboard.press("ArrowLeft")
    assert at(tab) == 0
    for button, where in (("#on", 1), ("#last", last), ("#back", last - 1), ("#first", 0)):
        tab.click(button)
        assert at(tab) == where
    tab.fill("#slider", "5")
    assert at(tab) == 5
    assert tab.inner_text("#where") == f"step 5 of {last}"
    row = tab.query_selector("#tracks canvas").bounding_box()
    tab.mouse.click(row["x"] + row["width"] * (7.5 / (last + 1)), row["y"] + row["height"] / 2)
    assert at(tab) == 7
    assert tab.get_attribute("#picture", "src") == episode.pictures[episode.steps[7].picture]


def test_keys_choose_what_recalls(open_page, episode):
    tab = open_page(render_page(episode))
    names = tab.locator("#read option").all_inner_texts()

    def selected_name():
        return tab.inner_text("#recalls .chosen p span:first-child")

    for key, name in ((".", names[1]), (",", names[0]), (",", names[-1]), (".", names[0])):
        tab.keyboard.press(key)
        assert selected_name() == name


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("width", [390, 1100])
def test_axes_say_what_rows_and_columns_stand_for(open_page, episode, width):
    tab = open_page(render_page(episode), width=width)
    tab.keyboard.press("End")
    values = episode.tracks["value"]
    row = tab.locator("#tracks .row", has_text="value").first
    scale_values = [float(text) for text in row.locator(".scale span").all_inner_texts()]
    assert scale_values == pytest.approx([max(0, *values), min(0, *values)], rel=0.06)
    last = episode.steps[-1].recalls
    for number, recall in enumerate(last):
        scale = tab.locator("#recalls .scale").nth(number).locator("span").all_inner_texts()
        assert [float(text) for text in scale] == pytest.approx([recall.most, 0], rel=0.06)
    for axis in ("#tracks", "#recalls"):
        ticks = tab.locator(f"{axis} .ticks span").all()
        canvas = tab.locator(f"{axis} canvas").last.bounding_box()
        assert len(ticks) > 1
        for tick in ticks:
            box, step = tick.bounding_box(), int(tick.inner_text())
            middle = canvas["x"] + canvas["width"] * (step + 0.5) / len(episode.steps)
            assert box["x"] + box["width"] / 2 == pytest.approx(middle, abs=1)
            assert box["x"] + box["width"] <= width


def test_a_number_stays_in_one_line_beside_a_long_name(open_page):
    """Regression test: on a phone the value 0.01655 was broken into 0.0165 and 5."""
    name = "score of the sentence at its first reading"
    tab = open_page(render_page(Trace("policy", "long", (Step(0),), tracks={name: (0.0165512,)})), width=360)
    value = tab.locator("#tracks .row p span:last-child")
    assert value.inner_text() == "0.01655"
    lines = "(span) => { const all = document.createRange(); all.selectNodeContents(span); "
    assert value.evaluate(lines + "return all.getClientRects().length; }") == 1


def test_a_team_tells_what_it_did_beside_whom_its_members_hear(open_page):
    step = Step(0, choice="uav_0 3; uav_1 2", options={"uav_0 hears uav_1": 0.25})
    tab = open_page(render_page(Trace("team", "two", (step,))))
    assert tab.inner_text("#options").split("\n")[0] == "action: uav_0 3; uav_1 2"
    assert "25.0 %" in tab.inner_text("#options")


def test_a_step_shows_what_it_recalled_and_leads_there(open_page, episode):
    tab = open_page(render_page(episode))
    tab.keyboard.press("End")
    last = episode.steps[-1]
    names = [recall.name for recall in last.recalls]
    assert tab.evaluate("[...document.querySelectorAll('#read option')].map(o => o.textContent)") == names
    for index, recall in enumerate(last.recalls):
        tab.select_option("#read", str(index))
        moments = tab.evaluate("[...document.querySelectorAll('.moment')].map(m => Number(m.dataset.step))")
        weight = dict(zip(recall.steps.tolist(), recall.weights.tolist(), strict=True))
        expected = sorted(weight, key=lambda step: (-weight[step], step))[:8]
        assert moments == expected
    tab.click(".moment")
    assert at(tab) == expected[0]


def test_a_step_shows_what_it_recalls_where_what_was_chosen_is_not_there(open_page):
    """In an agent's trace, plans recall records and results recall tool calls."""
    steps = [Step(place, text=f"line {place}") for place in range(4)]
    steps[1] = dataclasses.replace(steps[1], recalls=(Recall.from_weights("memory", [0], [1.0]),))
    steps[3] = dataclasses.replace(steps[3], recalls=(Recall.from_weights("tool call", [2], [1.0]),))
    tab = open_page(render_page(Trace("agent", "a turn", tuple(steps), unit="seconds")))
    for place, read, moment in (
        (1, "memory", "0: line 0"),
        (3, "tool call", "2: line 2"),
        (1, "memory", "0:"),
    ):
        tab.fill("#slider", str(place))
        assert tab.inner_text("#recalls .chosen p span:first-child") == read
        assert tab.evaluate("document.getElementById('read').selectedOptions[0].textContent") == read
        assert tab.inner_text(".moment span:first-child").startswith(moment)
    tab.fill("#slider", "2")
    assert tab.inner_text("#moments") == "None."


def test_what_recalls_nothing_has_no_room_for_it(open_page):
    tab = open_page(render_page(Trace("team", "two", (Step(0), Step(1)), tracks={"reward": (0.0, 1.0)})))
    assert "recall" not in tab.inner_text("#lines").lower()
    assert not tab.is_visible("#read")


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("choice", ["toString", "constructor", "__proto__", "hasOwnProperty"])
def test_a_choice_is_told_whatever_its_name(open_page, choice):
    tab = open_page(render_page(Trace("agent", "a turn", (Step(0, choice=choice),))))
    assert tab.inner_text("#options") == f"action: {choice}"


def test_it_plays_to_the_end_and_rests(open_page, episode):
    quick = dataclasses.replace(episode, rate=1000.0)
    tab = open_page(render_page(quick))
    tab.keyboard.press(" ")
    last = len(quick.steps) - 1
    # The content security policy of the page forbids waiting inside it.
    while "pause" in tab.inner_text("#play"):
        tab.wait_for_timeout(20)
    assert at(tab) == last
    tab.keyboard.press(" ")
    assert at(tab) < last


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_both_schemes(open_page, episode, width, scheme):
    tab = open_page(render_page(episode), width=width)
    tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    red, green, blue = map(
        int, re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert (red + green + blue > 384) == (scheme == "light")
    ink = tab.evaluate("getComputedStyle(document.body).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) < 384) == (scheme == "light")


def test_a_notebook_shows_it_where_it_can_touch_nothing(open_page, episode):
    tab = open_page(f"<!doctype html><title>notebook</title><body>{render_frame(render_page(episode))}")
    (frame,) = tab.frames[1:]
    frame.wait_for_selector("#tracks canvas")
    assert frame.evaluate("document.getElementById('title').textContent") == episode.title
    assert frame.evaluate("window.origin") == "null"


def test_a_trace_of_no_steps_is_a_page(open_page):
    tab = open_page(render_page(Trace("policy", "nothing", ())))
    assert tab.inner_text("#where") == "no steps"


def test_a_trace_of_words_is_a_page(open_page):
    """A trace of an agent has no pictures."""
    steps = [
        Step(0.5 * n, text=f"word {n}", recalls=(Recall.from_weights("cache", range(n), [1 / n] * n),))
        for n in (1, 2, 3)
    ]
    first = Step(0, text="word 0")
    tab = open_page(render_page(from_json(to_json(Trace("agent", "words", (first, *steps), unit="seconds")))))
    tab.keyboard.press("End")
    assert tab.inner_text("#said") == "word 3"
    assert tab.inner_text(".moment span") == "0: word 0"
