"""Recipes: functions that return a full config. The first line of each docstring is its description."""

from __future__ import annotations

import importlib

from scrubjay.experiments.recipes.registry import RECIPES as RECIPES
from scrubjay.experiments.recipes.registry import Recipe as Recipe
from scrubjay.experiments.recipes.registry import recipe as recipe
from scrubjay.experiments.recipes.registry import with_memory as with_memory

# In the order of `scrubjay list`: first the recipes to try first, last those that need an environment of your
# own.
for _family in ("tasks", "sequences", "teams", "custom"):
    importlib.import_module(f"{__name__}.{_family}")
