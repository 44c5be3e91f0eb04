"""Registry of the tools by English and Chinese name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, get_args

from langchain_core.tools import BaseTool

from scrubjay.agents.tools.base import Language, Replay
from scrubjay.agents.tools.browse import BROWSE
from scrubjay.agents.tools.calculator import CALCULATOR
from scrubjay.agents.tools.calendar import CALENDAR, LUNAR_DATE, SOLAR_TERMS
from scrubjay.agents.tools.dates import TIME_DELTA
from scrubjay.agents.tools.holidays import HOLIDAYS
from scrubjay.agents.tools.spec import ToolContext, ToolSpec, build
from scrubjay.agents.tools.weather import WEATHER
from scrubjay.agents.tools.web import Web, WebConfig
from scrubjay.agents.tools.web_search import WEB_SEARCH, WIKIPEDIA

_SPECS: dict[str, ToolSpec] = {
    spec.name: spec
    for spec in (
        WEB_SEARCH,
        BROWSE,
        WIKIPEDIA,
        WEATHER,
        CALENDAR,
        HOLIDAYS,
        SOLAR_TERMS,
        LUNAR_DATE,
        TIME_DELTA,
        CALCULATOR,
    )
}


def list_tools(language: Language = "en") -> list[str]:
    """Return the names of all tools, in English or Chinese."""
    return [spec.zh_name if language == "zh" else spec.name for spec in _SPECS.values()]


def make_tools(
    names: Sequence[str] | Literal["auto", "none", "notool"] = "auto",
    *,
    language: Language = "en",
    clock: Callable[[], datetime] | None = None,
    offline: bool = False,
    replay: Replay | str | os.PathLike[str] | None = None,
    web: WebConfig | None = None,
) -> list[BaseTool]:
    """Return the langchain tools with the names `names`, in English or Chinese.

    Args:
        names: Names of the tools, `auto` for all tools, `none` or `notool` for no tools. Duplicates are
            dropped.
        language: Language of descriptions and outputs.
        clock: Function that returns the current time with a time zone; None for the system clock.
        offline: Use no network. Without `replay`, `auto` then leaves out network tools. With `replay`,
            network tools return recorded answers. A network tool without a recorded answer reports that it is
            unavailable.
        replay: File of recorded answers. Answers are written to the file while the network works, and read
            from the file if the network fails.
        web: Limits of web requests; None for the default limits.

    Raises:
        ValueError: On an unknown name or language, and if the clock has no time zone.
    """
    if language not in get_args(Language):
        raise ValueError(f"unknown language {language!r}; choose from {', '.join(get_args(Language))}")
    clock = clock or _now
    if clock().tzinfo is None:
        raise ValueError("clock must return datetimes with a time zone, such as datetime.now().astimezone()")
    recording = replay if isinstance(replay, Replay) or replay is None else Replay(replay)
    context = ToolContext(language, clock, Web(web), offline, recording)
    words = [names] if isinstance(names, str) else list(names)
    selected_names: dict[str, None] = {}
    for word in words:
        if word == "auto":
            mute = offline and recording is None
            selected_names |= dict.fromkeys(
                name for name, spec in _SPECS.items() if not (mute and spec.network)
            )
        elif word not in ("none", "notool"):
            selected_names[_resolve(word)] = None
    return [build(_SPECS[name], context) for name in selected_names]


def _now() -> datetime:
    return datetime.now().astimezone()


def _resolve(word: str) -> str:
    for name, spec in _SPECS.items():
        if word in (name, spec.zh_name):
            return name
    all_names = list_tools() + list_tools("zh")
    close = difflib.get_close_matches(word, all_names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"unknown tool {word!r}; the tools are {', '.join(all_names)}; auto is all tools, none is no "
        f"tool{hint}"
    )
