"""Benchmark of linear memory: runs and compares every variant with its peer."""

import re

from scrubjay.experiments.bench import recurrences


def test_every_way_is_compared_with_its_peer(capsys):
    recurrences.main(recurrences.RecurrencesBench(lengths=(20,), heads=2, width=4, rows=(1, 3), rounds=1))
    output = capsys.readouterr().out
    for name in recurrences.VARIANTS:
        assert re.search(rf"^\| {name} \| [\d.]+ ms, [\d.]+x \| [\d.]+ ms, [\d.]+x \|$", output, re.MULTILINE)
    for peer in ("attention", "GRU cell"):
        assert len(re.findall(rf"^\| {peer} \| [\d.]+ ms, 1\.00x", output, re.MULTILINE)) == 1
    assert "| relative to GRU cell | batch size 1 | batch size 3 |" in output
