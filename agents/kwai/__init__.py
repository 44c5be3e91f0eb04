"""Information-seeking agent on langchain-core: the loop of KwaiAgents, with a memory."""

from scrubjay.agents.kwai.agent import KwaiAgent
from scrubjay.agents.kwai.context import Profile
from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.turn import AgentMemory, Call, Event, MemoryRecord, Step
from scrubjay.agents.language.declarations import UndeclaredToolWarning

__all__ = [
    "AgentMemory",
    "Call",
    "Event",
    "KwaiAgent",
    "Limits",
    "MemoryRecord",
    "Profile",
    "Step",
    "UndeclaredToolWarning",
]
