"""An information-seeking agent on langchain-core: KwaiAgents' loop, with a memory."""

from scrubjay.agents.kwai.agent import KwaiAgent
from scrubjay.agents.kwai.events import Event, Step
from scrubjay.agents.kwai.limits import Limits
from scrubjay.agents.kwai.plans import Call
from scrubjay.agents.kwai.profile import Profile
from scrubjay.agents.kwai.remembering import Remembered, Remembers

__all__ = ["Call", "Event", "KwaiAgent", "Limits", "Profile", "Remembered", "Remembers", "Step"]
