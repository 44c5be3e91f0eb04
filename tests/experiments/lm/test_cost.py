"""Kinetics' cost model: loops, the published formulas, the fit, and the recommendation."""

import dataclasses
import random

import numpy as np
import pytest

from scrubjay.experiments.commands.main import main

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture
def cost():
    from scrubjay.experiments.lm import cost

    return cost


@pytest.fixture
def sizes(cost):
    from scrubjay.memory.context.policies.base import CacheShape

    return cost.ModelSizes(135_000_000, CacheShape(30, 1, 9, 3, 64, 64, 4))


def test_attended_keys_are_those_of_a_loop(cost):
    pick = random.Random(0)
    for _ in range(200):
        prompt, new_tokens, budget = pick.randrange(1, 300), pick.randrange(1, 300), pick.randrange(1, 400)
        workload = cost.Workload(prompt, new_tokens)
        for limit in (budget, None):
            loop = sum(min(limit or 10**9, prompt + step) for step in range(new_tokens))
            assert loop <= cost.count_keys(workload, limit) <= loop + new_tokens / 2
    # The paper's formula adds the ramp: 6,688.
    assert cost.count_keys(cost.Workload(40, 100), 64) == 6112


def test_the_full_cache_costs_what_the_paper_says(cost, sizes):
    from scrubjay.memory import context

    prompt, new_tokens, answers = 700, 90, 5
    result = cost.generation_cost(sizes, cost.Workload(prompt, new_tokens, answers), context.make("full"))
    heads, key_heads, width = 9 * 30, 3 * 30, 64
    attention = 2 * (2 * prompt + new_tokens) * new_tokens * heads * width
    assert result.compute == answers * (2 * sizes.parameters * new_tokens + attention)
    # The paper counts bytes of two-byte numbers, and no weights.
    keys = 2 * (2 * prompt + new_tokens * answers) * new_tokens * key_heads * width * 4 / 2
    assert result.memory == pytest.approx(keys + new_tokens * sizes.parameters * 4)


@pytest.mark.parametrize("name", ["sinks", "snapkv", "chunks", "recycled"])
def test_a_policy_costs_what_its_tokens_read(cost, sizes, name):
    from scrubjay.memory import context

    policy, prompt, new_tokens = context.make(name, budget=128), 1000, 40
    result = cost.generation_cost(sizes, cost.Workload(prompt, new_tokens), policy)
    keys = 128.0 * new_tokens
    ratings = sum((prompt + step + 0.5) / 8 for step in range(new_tokens)) if name == "chunks" else 0
    if name == "recycled":
        full = sum(prompt + step + 0.5 for step in range(new_tokens))
        keys = 0.9 * keys + 0.1 * full
    products = 2 * 9 * 64 * 30
    assert result.compute == pytest.approx(
        2 * sizes.parameters * new_tokens + products * (2 * keys + ratings)
    )
    number_bytes = 4 * (sizes.parameters * new_tokens + 3 * 64 * 30 * (2 * keys + ratings))
    assert result.memory == pytest.approx(number_bytes)
    if policy.reads_whole:
        other = context.make("flexprefill", policy=policy)
        assert cost.generation_cost(sizes, cost.Workload(prompt, new_tokens), other) == result


def make_rows(cost, sizes, machine):
    from scrubjay.memory import context

    rows = []
    for length in (1024, 4096, 8192):
        for name in ("full", "sinks", "chunks"):
            row = cost.Row(context.make(name, **({} if name == "full" else {"budget": 256})), length, 1.0)
            rows.append(row._replace(seconds=cost.predict_seconds(machine, sizes, row)))
    return rows


def test_the_fit_finds_the_constants_that_made_the_times(cost, sizes):
    machine = cost.Machine(7e-12, 9e-11)
    rows = make_rows(cost, sizes, machine)
    fit = cost.fit_machine(sizes, rows[::2])
    np.testing.assert_allclose(dataclasses.astuple(fit), dataclasses.astuple(machine), rtol=1e-6)
    assert max(cost.relative_errors(fit, sizes, rows[1::2])) < 1e-6


def test_the_fit_is_that_of_nonnegative_least_squares(cost, sizes):
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = [
            row._replace(seconds=row.seconds * generator.uniform(0.2, 5))
            for row in make_rows(cost, sizes, cost.Machine(7e-12, 9e-11))
        ]
        costs = [cost.generation_cost(sizes, cost.Workload(row.context), row.policy) for row in rows]
        features = np.array(costs) / np.array([[row.seconds] for row in rows]) * [1e-12, 1e-11]
        expected, _ = optimize.nnls(features, np.ones(len(rows)))
        fit = dataclasses.astuple(cost.fit_machine(sizes, rows))
        np.testing.assert_allclose(fit, expected * [1e-12, 1e-11], rtol=1e-5, atol=1e-18)


def test_a_recommendation_is_the_best_policy_within_the_limits(cost, sizes):
    from scrubjay.experiments.lm.options import CostOptions

    candidates = cost.rank_candidates(sizes, cost.Machine(0, 1e-10), cost.Workload(8192, 64))
    assert {one.name for one in candidates} == set(cost.PREFERENCE)
    full = candidates[0]
    free = CostOptions(latency=1e6, memory=1e6)
    assert "the policy `full`." in cost.describe_recommendation(candidates, free)
    small = CostOptions(memory=full.nbytes / 2**20 / 10)
    text = cost.describe_recommendation(candidates, small)
    choice = next(one for one in candidates if one.is_within(small))
    assert choice.name == "snapkv"
    assert f"the policy `snapkv` with a budget of {choice.budget:,}." in text
    larger = [one for one in candidates if one.name == "snapkv" and one.budget == 2 * choice.budget]
    assert not any(one.is_within(small) for one in larger)
    assert "No policy is within 1e-06 ms" in cost.describe_recommendation(
        candidates, CostOptions(latency=1e-6)
    )


def test_the_command_fits_measured_times_and_recommends(run, model_folder, tmp_path, capsys):
    flags = ("--budget", 16, "--steps", 2, "--repeats", 2, "--contexts", 32, 128)
    folder = run("speed", "--methods", "full", "sinks", *flags)
    words = ["longcontext", "cost", "--model", str(model_folder), "--out", str(tmp_path / "cost")]
    assert main([*words, "--rows", str(folder), "--memory", "1", "--prompt", "200", "--generate", "8"]) == 0
    out = capsys.readouterr().out
    assert "were fitted to 2 measured times. They predict the other 2 with a median error of" in out
    assert "Within 1 MiB: the policy `full`." in out
    assert "| sinks | 64 |" in (tmp_path / "cost" / "table.md").read_text()
    assert main([*words, "--rows", str(folder), "--dtype", "bfloat16"]) == 2
    assert "was measured with dtype='float32', not 'bfloat16'" in capsys.readouterr().err
    assert main([*words, "--rows", str(tmp_path)]) == 2
    assert "name a folder of scrubjay longcontext speed" in capsys.readouterr().err
    lines = [line for line in (folder / "turns.jsonl").read_text().splitlines(True) if '"full"' in line]
    for count, message in ((0, "has no measured times yet"), (1, "--rows has one measured time")):
        (folder / "turns.jsonl").write_text("".join(lines[:count]))
        assert main([*words, "--rows", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert main([*words, "--latency", "0"]) == 2
    assert "latency=0.0: must be positive" in capsys.readouterr().err


def test_without_rows_two_times_are_measured(cost, model):
    rows = cost.measure_rows(model[0])
    assert [row.context for row in rows] == [64, 2040]
    assert all(row.seconds > 0 for row in rows)
