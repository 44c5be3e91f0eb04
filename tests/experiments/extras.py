"""Recipes as parameters of tests. Those with environments of an extra require its package."""

from typing import Any

import pytest

from scrubjay.experiments.recipes import RECIPES

_PACKAGES = {"spread": "mpe2", "popgym-cartpole": "popgym"}


def recipe_parameters(*exceptions: str) -> list[Any]:
    """Return all recipes but `exceptions`."""
    return [
        pytest.param(name, marks=pytest.mark.requires(*filter(None, [_PACKAGES.get(name)])))
        for name in RECIPES
        if name not in exceptions
    ]
