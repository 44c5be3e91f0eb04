"""Benchmark of environments: one row per environment and batch size; rates count all environments."""

import numpy as np
import pytest

from scrubjay.experiments.bench import envs
from scrubjay.experiments.bench.envs import EnvsBench, main

SHORT = EnvsBench(rows=(2, 3), single_steps=2, batched_steps=3, repeats=1)


def test_every_environment_of_ours_is_measured():
    from scrubjay.envs import list_environments

    names = {name.partition(",")[0] for name in envs._list_measurements(SHORT)}
    assert names >= {name.split("/")[1] for name in list_environments()}


@pytest.mark.parametrize(("only", "peers"), [("CountRecall", 3), ("UAV-v0, small", 2)])
def test_a_row_has_the_rates_and_their_ratio(only, peers, capsys, monkeypatch):
    rates = iter(range(1, 100))
    monkeypatch.setattr(envs, "_rate", lambda step, actions: float(next(rates)))
    main(EnvsBench(**{**vars(SHORT), "only": only}))
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if only in line]
    assert [row[1] for row in rows] == ["2", "3"]
    first = [float(cell) for cell in rows[0][2:5] if cell.strip()]
    assert first == list(range(1, peers + 1))
    assert float(rows[0][-1]) == peers  # ours to the loop


def test_a_rate_counts_the_steps_of_all_rows(monkeypatch):
    moments = iter([10.0, 12.0])
    monkeypatch.setattr(envs.time, "perf_counter", lambda: next(moments))
    batches = []
    assert envs._rate(batches.append, np.zeros((5, 4))) == 5 * 4 / 2
    assert len(batches) == 5


def test_a_name_that_no_environment_has_is_refused():
    with pytest.raises(
        ValueError, match="only='Chess': no environment's name contains it; choose from TMaze"
    ):
        main(EnvsBench(only="Chess"))
