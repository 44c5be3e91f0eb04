"""What a run keeps of its environment, so that its policy and its plots need none: spaces, as plain JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Self

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.runs.reading import parse_object


@dataclass(frozen=True)
class Facts:
    """What there is to see and to do, of a team how many agents there are, and what needs no memory."""

    spaces: Spaces
    success_without_memory: float | None = None
    """The best success there is without memory; None where nobody worked it out."""

    def to_json(self) -> str:
        """Return the text of a file. Raises TypeError on a space that no policy supports."""
        fields = {**self.spaces.to_plain(), "success_without_memory": self.success_without_memory}
        return json.dumps(fields, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote; raises ValueError on all else, and on sizes that cannot be meant."""
        fields = parse_object(text, "it")
        spaces, success = Spaces.from_plain(fields), fields["success_without_memory"]
        return cls(spaces, None if success is None else _finite(success))


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{value!r:.40}: expected a number")
    return float(value)
