"""Losses of a text's tokens, as numbers."""

import math

import pytest

from scrubjay.experiments.lm.reading import Curve


def test_a_curve_of_equal_chances_has_their_perplexity():
    curve = Curve([{"nats": [math.log(7)] * 4, "cpu": 2.0}, {"nats": [math.log(7)] * 2, "cpu": 1.0}])
    assert curve.perplexity() == pytest.approx(7)
    assert curve.milliseconds("cpu") == pytest.approx(500)
    assert curve.milliseconds("cpu", 0.5) == pytest.approx(500)
