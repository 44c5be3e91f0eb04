"""Information-seeking agent on langchain-core: the loop of KwaiAgents, with a memory."""

from scrubjay.agents.kwai.agent import KwaiAgent
from scrubjay.agents.kwai.events import Event, Step
from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.memory_protocol import AgentMemory, MemoryRecord
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.kwai.profile import Profile

__all__ = ["AgentMemory", "Call", "Event", "KwaiAgent", "Limits", "MemoryRecord", "Profile", "Step"]
