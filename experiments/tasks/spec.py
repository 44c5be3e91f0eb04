"""Environment properties that a run stores as JSON, to load the run's policy without the environment."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Self

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.runs.json_reader import parse_object


@dataclass(frozen=True)
class EnvFacts:
    """Spaces of an environment, the number of agents of a team, and the success without memory."""

    spaces: Spaces
    success_without_memory: float | None = None
    """Best possible success rate without memory; None if unknown."""

    def to_json(self) -> str:
        """Return the JSON text. Raises TypeError on an unsupported space."""
        fields = {**self.spaces.to_dict(), "success_without_memory": self.success_without_memory}
        return json.dumps(fields, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Load the facts that `to_json` wrote. Raises ValueError on invalid text or excessive sizes."""
        fields = parse_object(text, "the content")
        spaces, success = Spaces.from_dict(fields), fields["success_without_memory"]
        return cls(spaces, None if success is None else _finite(success))


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"success_without_memory={value!r:.40}: expected a number")
    return float(value)
