"""Load time of three pages in a browser: an episode, only the pictures of the episode, and an empty page.

    python -P -m scrubjay.experiments.bench.pages

The episode is one of Ballet with 8 dancers, by an untrained policy with HCAM. The page "pictures only" has
every picture once, and the browser decodes all of them. A page is ready when it has loaded and been painted.
Headless Chromium, from $CHROMIUM or PATH, opens the pages in turns. The table has the shortest time of each
page, because the machine may be shared. Options: `--help`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments.bench import take_turns
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.experiments.viz.look import render_page
from scrubjay.experiments.viz.trace import Trace
from scrubjay.memory import make_config

EMPTY = "<!doctype html><title>empty</title><p>empty"
_PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass(frozen=True)
class PagesBench:
    """Options of the benchmark."""

    dancers: int = 8
    """Number of dancers of the Ballet environment."""
    delay: int = 16
    """Steps between dances of the Ballet environment."""
    max_steps: int = 500
    """Maximum number of steps of the episode."""
    rounds: int = 20
    """Number of timed openings per page."""


def main(bench: PagesBench) -> None:
    """Run the benchmark and print its table."""
    torch.manual_seed(0)
    env = EnvConfig("scrubjay/Ballet-v0", {"num_dancers": bench.dancers, "delay": bench.delay})
    policy = PolicyConfig(memory=make_config("hcam")).build(env.spaces()).eval()
    trace = trace_episode(policy, env, max_steps=bench.max_steps)
    pages = {
        "empty page": EMPTY,
        "pictures only": render_pictures(trace),
        "episode page": render_page(trace),
    }
    seconds = time_pages(pages, bench.rounds)
    alone, size = seconds["pictures only"], len(pages["pictures only"].encode())
    print(
        f"Ballet, {bench.dancers} dancers, {len(trace.steps)} steps, {len(trace.pictures)} pictures, HCAM; "
        f"the shortest of {bench.rounds}; {os.cpu_count()} CPUs, shared with other work\n"
    )
    print("| page | ready after | relative to pictures only | bytes | relative to pictures only |")
    print("|---|---|---|---|---|")
    for name, text in pages.items():
        took, bytes_ = seconds[name], len(text.encode())
        print(f"| {name} | {took * 1e3:.0f} ms | {took / alone:.2f}x | {bytes_:,} | {bytes_ / size:.2f}x |")


def render_pictures(trace: Trace) -> str:
    """Return an HTML page that shows only the pictures of a trace."""
    return "<!doctype html><title>film</title>" + "".join(
        f'<img decoding="sync" src="{address}">' for address in trace.pictures
    )


def time_pages(pages: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the shortest time until each page was ready, in seconds.

    Raises RuntimeError if no Chromium is found, and ImportError if playwright is not installed.
    """
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        raise RuntimeError("no Chromium found: set CHROMIUM to its path, or run apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, headless=True, chromium_sandbox=False)
        methods = {}
        for number, (name, text) in enumerate(pages.items()):
            file = Path(folder) / f"{number}.html"
            file.write_text(text, "utf-8")
            methods[name] = partial(_open, browser, file.as_uri())
        seconds = take_turns(methods, rounds)
        browser.close()
    return {name: min(own) for name, own in seconds.items()}


def chromium() -> str | None:
    """Return the path of Chromium, from $CHROMIUM or PATH; None if no Chromium is found."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _open(browser: Any, address: str) -> float:
    browser_page = browser.new_page(viewport={"width": 1100, "height": 800})
    start = time.perf_counter()
    browser_page.goto(address, wait_until="load")
    browser_page.evaluate(_PAINTED)
    took = time.perf_counter() - start
    browser_page.close()
    return took


if __name__ == "__main__":
    main(tyro.cli(PagesBench, description=__doc__))
