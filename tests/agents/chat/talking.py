"""Questions, tools and helpers of the chat model's tests."""

from __future__ import annotations

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool

QUESTIONS = ["Hello, what is the weather?", "And now?", "What is it, then? It is sunny."]
SYSTEM = SystemMessage("You remember what is shown, and you answer in few words.")


def talk(model, questions, config=None):
    messages, answers = [], []
    for question in questions:
        messages.append(HumanMessage(question))
        answers.append(model.invoke(messages, config))
        messages.append(answers[-1])
    return answers


def read(message):
    return message.usage_metadata["input_token_details"]["cache_read"]


@tool
def weather(place: str, days: int = 1) -> str:
    """Return the weather."""
    return f"sunny in {place} for {days} days"


@tool
def adder(a: int, b: int) -> int:
    """Add."""
    return a + b
