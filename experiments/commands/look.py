"""`scrubjay look`: visualize the memory of a policy in an episode as a page, a picture or a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse, take_flag
from scrubjay.experiments.cli.terminal import bad_input
from scrubjay.experiments.cli.untrusted_text import one_line


@dataclass(frozen=True)
class LookOptions:
    """Visualize the memory of an agent: a page with each step of an episode and what the memory recalls."""

    source: Positional[str]
    """Run directory, or a trace file (.json)."""
    episode: int = 1
    """Random seed of the episode."""
    out: Path | None = None
    """Output file: a page (.html), a picture (.png, .pdf, .svg) or a trace (.json); default: look.html in the
    run directory, or in the current folder."""
    max_steps: int = 500
    """Maximum steps of the episode."""
    best_response: bool = False
    """For teams: train each agent alone while the other agents are fixed (best response), and show on the
    page by how much its return increases."""
    response_steps: int = 50_000
    """Environment steps per agent for --best-response."""
    trust: bool = False
    """Trust the run: allow its custom environment and the pickled data in its files to execute code."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay look RUN|TRACE [--episode SEED] [--out FILE] [--set name=value] [--best-response]`."""
    remaining = list(argv)
    settings = take_flag(remaining, "--set")
    options = parse(LookOptions, remaining, "scrubjay look")
    from scrubjay.experiments.commands.loading import memory_guard
    from scrubjay.experiments.recipes.overrides import parse_setting
    from scrubjay.experiments.viz.differences import BestResponses
    from scrubjay.experiments.viz.look import Look, check_format, look

    with memory_guard(options.trust), bad_input():
        folder = Path(options.source) if Path(options.source).is_dir() else Path()
        out = options.out or folder / "look.html"
        check_format(out)
        env_settings = dict(map(parse_setting, settings))
        responses = None
        if options.best_response:
            responses = BestResponses.from_run(
                options.source, env_settings, options.response_steps, options.trust
            )
        what = options.source if responses is None else responses.run
        page = look(what, options.episode, env_settings, options.max_steps, options.trust, progress=True)
        page.save(out)
        if responses is not None:  # best responses take minutes, so the page is written before and after
            page = Look(responses.add_to_trace(page.trace))
            page.save(out)
    print(one_line(f"{out}: {page.trace.title}, {len(page.trace.steps)} steps"))
    return 0
