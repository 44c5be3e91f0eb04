"""Benchmark of memories: covers all registered ones, steps mid-episode, reports multiples of `none`."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from scrubjay.experiments.bench.memories import (
    _LSTM_FLOPS,
    MemoriesConfig,
    MemoryCost,
    _step,
    _table,
)
from scrubjay.experiments.bench.revisions import StepLoop
from scrubjay.memory import list_memories, make

CONFIG = MemoriesConfig(dim=8, rows=(1, 3), steps=2, rounds=2)


def test_all_that_are_registered_take_part_behind_none():
    names = list(CONFIG.memory_configs)
    assert names[0] == "none"
    assert set(list_memories()) < set(names)
    assert all(memory.dim == 8 for memory in CONFIG.memory_configs.values())
    assert list(MemoriesConfig(memories=("gru",)).memory_configs) == ["none", "gru"]


def test_rows_continue_from_the_middle_of_episodes_of_different_ages():
    loop = StepLoop(make("sink", dim=8), rows=3, steps=2)
    before = loop.stepper.state()["time"]
    assert before.tolist() == [256, 255, 254]
    loop()
    assert torch.equal(loop.stepper.state()["time"], before + 2)


def test_every_round_that_counts_gives_a_step_of_each_size():
    memories = MemoriesConfig(dim=8, memories=("lstm",)).memory_configs
    costs = {name: MemoryCost() for name in memories}
    _step(CONFIG, memories, costs)
    assert all(
        {rows: len(times) for rows, times in cost.step.items()} == {1: 2, 3: 2} for cost in costs.values()
    )


def test_costs_are_multiples_of_none_and_of_the_peer():
    memories = MemoriesConfig(dim=8, memories=("lstm",)).memory_configs
    costs = {
        "none": MemoryCost([10.0], [20.0], {1: [0.5], 3: [1.0]}, 4.0),
        "lstm": MemoryCost([25.0], [40.0], {1: [0.25], 3: [2.0]}, 12.0),
        "sb3-contrib RecurrentPPO": MemoryCost([50.0], [100.0]),
    }
    _, _, none, lstm, peer = _table(CONFIG, memories, costs)
    assert none == "| none | 10 (1.0x) | 4 | 204,800 (1.0x the time) | 5.0x | 500 | 1,000 | 0 |"
    assert lstm == "| lstm | 25 (2.5x) | 12 | 102,400 (2.0x the time) | 2.5x | 250 | 2,000 | 64 |"
    assert peer.endswith("| 50 (5.0x) | - | 40,960 (5.0x the time) | 1.0x | - | - | - |")


def test_products_of_a_fused_lstm_are_those_of_its_cell():
    memory, x = make("lstm", dim=8), torch.randn(3, 5, 8)
    with FlopCounterMode(display=False, custom_mapping=_LSTM_FLOPS) as counter:
        y, _ = memory(x, memory.initial_state(3), torch.zeros(3, 5, dtype=torch.bool))
        y.sum().backward()
    once = 2 * 3 * 5 * 2 * 8 * 4 * 8
    assert counter.get_total_flops() == 3 * once
