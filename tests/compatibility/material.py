"""What the files in `d9e860e/` were made from and are asked, for what made them and for the tests.

Public names alone are imported, so that it runs on any later version.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MADE = Path(__file__).with_name("d9e860e")
RUNS = ("agent", "team", "probe", "sequence")
"""A run of every kind, stopped in the middle."""
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
"""When the bank is asked."""
POLICIES: dict[str, dict[str, Any]] = {
    "chunks": {"budget": 16, "chunk_size": 2, "local_chunks": 3},
    "full": {},
    "h2o": {"budget": 12, "recent": 5, "num_sinks": 2, "interval": 3},
    "recycled": {"budget": 12, "stride": 4, "num_sinks": 2},
    "sinks": {"budget": 8, "num_sinks": 2},
    "snapkv": {"budget": 12, "window": 4, "num_sinks": 2},
    "window": {"budget": 8},
}
"""Context policies, of sizes that have dropped much after the prompt."""
# No token twice, lest two chunks of the same tokens score alike and rounding choose.
_TOKENS = torch.tensor([[(23 * place + 5) % 61 + 2 for place in range(48)]])
PROMPT, REST = _TOKENS[:, :40], _TOKENS[:, 40:]


def config(name: str) -> Any:
    """Return the experiment of a run: the smallest there is of its kind."""
    from scrubjay.agents import GAMATRConfig, PolicyConfig, PPOConfig, TeamPolicyConfig
    from scrubjay.experiments import RECIPES, EnvConfig
    from scrubjay.memory import make_config

    if name == "agent":
        memory = make_config("hcam", dim=8, chunk_size=4, num_chunks=4, top_k=2)
        return dataclasses.replace(
            RECIPES["tmaze-demo"](),
            env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}, num_envs=4),
            policy=PolicyConfig(memory=memory, reconstruction=True),
            ppo=PPOConfig(epochs=1, num_minibatches=2, reconstruction_coefficient=1.0),
            total_steps=192,
            segment_length=8,
            device="cpu",
            eval_episodes=5,
        )
    if name == "team":
        plain: Any = RECIPES["uav-small"]()
        return dataclasses.replace(
            plain,
            env=dataclasses.replace(plain.env, kwargs={"preset": "small", "max_steps": 10}, num_envs=4),
            policy=TeamPolicyConfig(memory=make_config("gru", dim=8), graph_heads=2, shared=False),
            learner=GAMATRConfig(minibatches=2, critic_epochs=1),
            total_steps=120,
            segment_length=5,
            device="cpu",
            eval_episodes=2,
        )
    if name == "probe":
        return dataclasses.replace(
            RECIPES["ballet-probe"](),
            memory=make_config("gru", dim=8),
            batch_questions=8,
            total_steps=1200,
            eval_episodes=8,
            eval_dancers=(2,),
            eval_delays=(16,),
        )
    return dataclasses.replace(
        RECIPES["mqar"](),
        memory=make_config("gru", dim=8),
        parameters=3000,
        batch_rows=2,
        total_steps=640,
        eval_rows=4,
        eval_items=(2,),
        eval_longer=(1, 2),
    )


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of metrics, or a result, without what depends on the machine's speed."""
    return {
        name: value
        for name, value in row.items()
        if not name.startswith("time/") and name not in ("charts/SPS", "seconds")
    }


def play_agent(policy: Any, observations: Tensor) -> dict[str, Tensor]:
    """Return what a policy does on observations `[time, batch, ...]`, and what it remembers in the end."""
    actions, state = [], None
    for observation in observations:
        action, state = policy.act(observation, state)
        actions.append(torch.as_tensor(action))
    assert state is not None
    return {"actions": torch.stack(actions), **{f"state.{name}": value for name, value in state.items()}}


def play_team(policy: Any, steps: int = 8) -> dict[str, Tensor]:
    """Return what a team does in the first steps of an episode, and what it remembers then."""
    from scrubjay.envs import uav

    env = uav.teams(2, "small", max_steps=10)
    observation, alive = env.reset(seed=3)
    actions, rewards, state = [], [], None
    for _ in range(steps):
        action, state = policy.act(observation, alive, state)
        step = env.step(action)
        observation, alive = step.observations, step.alive
        actions.append(torch.as_tensor(action))
        rewards.append(torch.as_tensor(step.rewards, dtype=torch.float64))
    assert state is not None
    found = {"actions": torch.stack(actions), "rewards": torch.stack(rewards)}
    return found | {f"state.{name}": value.contiguous() for name, value in state.items()}


class Clock:
    """The bank's clock; an hour passes from record to record."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """Return the present moment."""
        return self.now

    def pass_by(self, **time: float) -> None:
        """Let time pass."""
        self.now += timedelta(**time)


SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "a name": ("Where does Vera live?", {}),
    "in the past": ("Where does Vera live?", {"at": datetime(2026, 1, 1, 12, tzinfo=UTC)}),
    "Chinese": ("薇拉住在哪里?", {}),
    "Chinese words": ("薇拉喜欢喝什么茶", {"k": 3}),
    "a circle": ("Who likes tea?", {"namespace": ("user", "ada")}),
    "a wide circle": ("Who likes tea?", {"namespace": ("user",)}),
    "a kind": ("engine", {"kinds": "knowledge"}),
    "two kinds": ("the meeting about the engine", {"kinds": ("task", "episode")}),
    "trust": ("What is the price of the engine?", {"trusts": ("user", "agent")}),
    "a day": ("What happened on 2026-01-01?", {"k": 5}),
    "a month": ("What was said in January 2026?", {"k": 5}),
    "letters alone": ("evil rave", {"k": 5}),
    "nothing of it": ("zzz", {"k": 2}),
}
"""Queries of the bank, by what they are about."""


def llama(weights: dict[str, Tensor] | None = None) -> Any:
    """Return a Llama of two layers, with these weights or random ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Far from zero: the likeliest token must not hang on the last bit of float32.
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    if weights is not None:
        model.load_state_dict(weights)
    return model


@torch.no_grad()
def go_on(model: Any, cache: Any, tokens: Tensor) -> Tensor:
    """Return the logits after each token, read one by one."""
    return torch.cat(
        [model(tokens[:, place : place + 1], cache=cache).logits for place in range(tokens.shape[1])],
        dim=1,
    )


def graph(saver: Any) -> Any:
    """Return a LangGraph agent of two steps, which waits between them to be told to go on."""
    from langchain_core.messages import AIMessage
    from langgraph.graph import END, START, MessagesState, StateGraph

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"thought {len(state['messages'])}", id="thought")]}

    def answer(state: MessagesState) -> dict[str, Any]:
        said = " | ".join(str(message.content) for message in state["messages"])
        return {"messages": [AIMessage(f"after {said}", id="answer")]}

    built = StateGraph(MessagesState)
    built.add_node("think", think)
    built.add_node("answer", answer)
    built.add_edge(START, "think")
    built.add_edge("think", "answer")
    built.add_edge("answer", END)
    return built.compile(checkpointer=saver, interrupt_before=["answer"])


THREAD: Any = {"configurable": {"thread_id": "ada"}}
"""Of the graph that waits."""
