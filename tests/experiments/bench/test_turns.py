"""Methods are timed in turns."""

import torch

from scrubjay.experiments.bench import time_in_turns, time_passes


def test_each_method_runs_once_a_round_and_warm_up_is_not_returned():
    calls = []
    clock = iter(range(100))
    methods = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_in_turns(methods, rounds=3, warm_up=2, clock=lambda: float(next(clock)))
    assert calls == ["a", "b"] * 5
    assert set(seconds) == {"a", "b"}
    assert all(len(times) == 3 for times in seconds.values())


def test_methods_take_turns_and_run_forward_and_backward():
    calls = []

    def build_method(name):
        weight = torch.ones(1, requires_grad=True)

        def run():
            calls.append((name, torch.is_grad_enabled()))
            return weight * 2

        return run

    costs = time_passes({name: build_method(name) for name in "ab"}, rounds=3)
    assert list(costs) == ["a", "b"]
    once = [("a", False), ("a", True), ("b", False), ("b", True)]
    assert calls == once * (3 + 2)  # two rounds warm up
