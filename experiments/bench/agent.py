"""CPU time of an agent with an instant model and an instant tool: KwaiAgent and plain LangGraph loops.

    pip install langgraph
    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.agent

All agents use the same model, which returns scripted replies without delay, and the same tool, which adds two
numbers. The measured time is therefore mostly overhead of the agent. The agents take turns in one process. A
step is one model call, one tool call and the overhead between these calls. Prints a table. Options: `--help`.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import tyro
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from scrubjay.agents import tool
from scrubjay.agents.kwai import KwaiAgent, Limits
from scrubjay.experiments.bench import time_in_turns
from scrubjay.memory import MemoryBank

_SHORT = 1  # steps of the short answer; the time per step is the difference to a longer answer


@dataclass(frozen=True)
class AgentBench:
    """Options of the benchmark."""

    steps: tuple[int, ...] = (5, 20)
    """Numbers of tool calls before the answer; the table has two columns for each."""
    repeats: int = 30
    """Number of timed answers of each agent."""


class Script(BaseChatModel):
    """Scripted model that calls the tool `steps` times with different numbers, then answers."""

    steps: int

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Bind tools in the OpenAI format."""
        return self.bind(tools=[convert_to_openai_tool(one) for one in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        done = sum(isinstance(message, ToolMessage) for message in messages)
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        if done < self.steps and "tools" in kwargs:
            call = {"name": "add", "args": {"a": done, "b": 1}, "id": f"call_{done}", "type": "tool_call"}
            reply = AIMessage("", tool_calls=[call], usage_metadata=usage)
        else:
            reply = AIMessage("The sum is known.", usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=reply)])


@tool(side_effect=False)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def build_methods(steps: int) -> dict[str, Callable[[], Any]]:
    """Return for each agent a function that answers one question; LangGraph's graph comes first."""
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition

    model = Script(steps=steps)
    question = "What is the sum of all these numbers?"
    inputs: Any = {"messages": [("user", question)]}
    run_config: Any = {"recursion_limit": 4 * steps + 10}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of langchain's agent, which has more overhead
        prebuilt = create_react_agent(model, [add])
    bound = model.bind_tools([add])
    graph: Any = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition, {"tools": "tools", END: END})
    graph.add_edge("tools", "model")
    by_hand = graph.compile()
    limits = Limits(tool_calls=steps + 1)
    ours = KwaiAgent(model, [add], max_steps=steps + 1, limits=limits)
    bank = MemoryBank(":memory:")
    agent_with_bank = KwaiAgent(model, [add], max_steps=steps + 1, limits=limits, memory=bank)
    return {
        "LangGraph, a graph of model and tools": lambda: by_hand.invoke(inputs, run_config),
        "LangGraph's create_react_agent": lambda: prebuilt.invoke(inputs, run_config),
        "KwaiAgent": lambda: ours.invoke(question),
        "KwaiAgent with a MemoryBank": lambda: agent_with_bank.invoke(question),
    }


def measure(steps: int, repeats: int) -> dict[str, float]:
    """Return each agent's median CPU seconds per answer. Agents take turns; the first round is a warm-up."""

    def check(name: str, answer: Callable[[], Any]) -> None:
        ran = sum(isinstance(message, ToolMessage) for message in answer()["messages"])
        if ran != steps:
            raise RuntimeError(f"{name} ran {ran} tools instead of {steps}")

    methods = {
        name: lambda name=name, answer=answer: check(name, answer)
        for name, answer in build_methods(steps).items()
    }
    return {name: statistics.median(seconds) for name, seconds in time_in_turns(methods, repeats).items()}


def main() -> None:
    """Run the benchmark and print its table."""
    config = tyro.cli(AgentBench, description=__doc__)
    short = measure(_SHORT, config.repeats)
    versions = ", ".join(f"{name} {version(name)}" for name in ("langchain-core", "langgraph"))
    print(f"CPU milliseconds of all threads, medians of {config.repeats} answers; {versions}; one thread\n")
    headers = "".join(f" answer of {steps} steps | each additional step |" for steps in config.steps)
    print(f"| agent |{headers}\n|{'---|' * (2 * len(config.steps) + 1)}")
    rows: dict[str, list[float]] = {name: [] for name in short}
    for steps in config.steps:
        for name, seconds in measure(steps, config.repeats).items():
            rows[name] += [seconds, (seconds - short[name]) / (steps - _SHORT)]
    first = next(iter(rows.values()))
    for name, row in rows.items():
        cells = (f"{1000 * value:.2f} ({value / base:.2f}x)" for value, base in zip(row, first, strict=True))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
