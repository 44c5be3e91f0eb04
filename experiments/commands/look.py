"""`scrubjay look`: what a policy remembers in an episode, as a page, a picture or a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse, take_flag
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class LookOptions:
    """Show what an agent remembers: the film of an episode beside what each step recalled, as one page."""

    what: Positional[str]
    """A run's directory, or a trace (.json) that was written before."""
    episode: int = 1
    """Seed of the episode."""
    out: Path | None = None
    """File to write: a page (.html), a picture (.png, .pdf, .svg) or the trace (.json); default: look.html in
    the run, or in the current folder."""
    max_steps: int = 500
    """Where to cut a long episode."""
    best_response: bool = False
    """Of a team: let each agent learn alone against the others, and tell on the page what it gains."""
    response_steps: int = 50_000
    """Environment steps each agent has for that."""
    trust: bool = False
    """Run code that the directory names or has pickled: an environment that is none of Scrubjay's, say."""


def run(words: Sequence[str]) -> int:
    """`scrubjay look RUN|TRACE [--episode SEED] [--out FILE] [--set name=value] [--best-response]`."""
    remaining = list(words)
    settings = take_flag(remaining, "--set")
    options = parse(LookOptions, remaining, "scrubjay look")
    from scrubjay.experiments.commands.loading import guarded
    from scrubjay.experiments.looking.gains import Responses
    from scrubjay.experiments.looking.look import Look, check_format, look
    from scrubjay.experiments.recipes.overrides import parse_setting

    with guarded(options.trust), bad_input():
        folder = Path(options.what) if Path(options.what).is_dir() else Path()
        out = options.out or folder / "look.html"
        check_format(out)
        set_to = dict(map(parse_setting, settings))
        responses = None
        if options.best_response:
            responses = Responses.to(options.what, set_to, options.response_steps, options.trust)
        what = options.what if responses is None else responses.run
        seen = look(what, options.episode, set_to, options.max_steps, options.trust, progress=True)
        seen.save(out)
        if responses is not None:  # what takes minutes comes when the page is there already
            seen = Look(responses.told_in(seen.trace))
            seen.save(out)
    print(one_line(f"{out}: {seen.trace.title}, {len(seen.trace.steps)} steps"))
    return 0
