"""Traces, and pages of them opened in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments import EnvConfig
from scrubjay.experiments.viz.episode import trace_episode
from scrubjay.memory import make_config


def policy_for(env: EnvConfig, memory: str, **fields: Any) -> Any:
    """Return a new policy with fixed initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = PolicyConfig(memory=make_config(memory, **{"dim": 16} | fields))
        return config.build(env.spaces()).eval()


@pytest.fixture(scope="session")
def episode():
    """A short maze with a memory of chunks."""
    env = EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 12})
    return trace_episode(policy_for(env, "hcam", chunk_size=3, num_chunks=4, top_k=2), env)


@pytest.fixture
def open_page(browser, tmp_path):
    """Open pages in a browser; console messages and network requests of a page fail the test."""
    pages = []

    def open_text(text: str, **viewport: int) -> Any:
        path = Path(tmp_path) / f"page{len(pages)}.html"
        path.write_text(text, "utf-8")
        page = browser.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.requests.append(request.url))
        page.set_viewport_size({"width": 1100, "height": 800} | viewport)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_text
    for page in pages:
        assert page.complaints == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
        page.close()
