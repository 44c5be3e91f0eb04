"""How long a browser takes to open the page of an episode, against its film alone and an empty page.

    python -P -m scrubjay.experiments.bench.pages

The episode is one of Ballet with 8 dancers, by an untrained policy with
HCAM. The film alone is every picture once in a bare page, all decoded. A page is ready when it has loaded and
been painted. In Chromium without a window, which $CHROMIUM or the path names; the pages turn by turn, and of
each the shortest time, since others may use the processor. Options: `--help`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments.looking.episode import trace_episode
from scrubjay.experiments.looking.page import page
from scrubjay.experiments.looking.trace import Trace
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config

EMPTY = "<!doctype html><title>empty</title><p>empty"
_PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass(frozen=True)
class PagesBench:
    """What is opened, and how often."""

    dancers: int = 8
    """Dancers of the ballet."""
    delay: int = 16
    """Steps between dances."""
    max_steps: int = 500
    """Where the episode is cut."""
    rounds: int = 20
    """Times that each page is opened."""


def main(bench: PagesBench) -> None:
    """Open the pages and print the table."""
    trace = _episode(bench)
    pages = {"the empty page": EMPTY, "the film alone": film(trace), "the page": page(trace)}
    seconds = opened(pages, bench.rounds)
    alone, size = seconds["the film alone"], len(pages["the film alone"].encode())
    print(
        f"Ballet, {bench.dancers} dancers, {len(trace.steps)} steps, {len(trace.pictures)} pictures, HCAM; "
        f"the shortest of {bench.rounds}; {os.cpu_count()} CPUs, shared with other work\n"
    )
    print("| | ready after | against the film alone | bytes | against the film alone |")
    print("|---|---|---|---|---|")
    for name, text in pages.items():
        took, bytes_ = seconds[name], len(text.encode())
        print(f"| {name} | {took * 1e3:.0f} ms | {took / alone:.2f}x | {bytes_:,} | {bytes_ / size:.2f}x |")


def film(trace: Trace) -> str:
    """Return a page of a trace's pictures and nothing else."""
    return "<!doctype html><title>film</title>" + "".join(
        f'<img decoding="sync" src="{address}">' for address in trace.pictures
    )


def opened(pages: dict[str, str], rounds: int) -> dict[str, float]:
    """Return the shortest time that each page took until it was ready, in seconds.

    Raises RuntimeError without a browser, and ImportError without what drives one.
    """
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        raise RuntimeError("there is no chromium: set CHROMIUM to one, or apt-get install chromium")
    shortest = dict.fromkeys(pages, float("inf"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, headless=True, chromium_sandbox=False)
        for number, text in enumerate(pages.values()):
            (Path(folder) / f"{number}.html").write_text(text, "utf-8")
        for round_ in range(-1, rounds):  # the first one warms the browser up
            for number, name in enumerate(pages):
                took = _open(browser, (Path(folder) / f"{number}.html").as_uri())
                if round_ >= 0:
                    shortest[name] = min(shortest[name], took)
        browser.close()
    return shortest


def chromium() -> str | None:
    """Return the browser's program: $CHROMIUM, or one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _open(browser: Any, address: str) -> float:
    shown = browser.new_page(viewport={"width": 1100, "height": 800})
    began = time.perf_counter()
    shown.goto(address, wait_until="load")
    shown.evaluate(_PAINTED)
    took = time.perf_counter() - began
    shown.close()
    return took


def _episode(bench: PagesBench) -> Trace:
    torch.manual_seed(0)
    env = EnvConfig("scrubjay/Ballet-v0", {"num_dancers": bench.dancers, "delay": bench.delay})
    policy = PolicyConfig(memory=make_config("hcam")).build(env.spaces()).eval()
    return trace_episode(policy, env, max_steps=bench.max_steps)


if __name__ == "__main__":
    main(tyro.cli(PagesBench, description=__doc__))
