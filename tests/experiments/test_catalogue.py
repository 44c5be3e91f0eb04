"""The catalogue: what is kept as data is what the registries hold."""

from scrubjay.experiments import RECIPES
from scrubjay.experiments.catalogue import catalogue, gathered


def test_what_is_kept_is_what_there_is():
    assert catalogue() == gathered(), "run: python -P -m scrubjay.experiments.catalogue"


def test_it_keeps_the_order_in_which_recipes_are_tried():
    assert list(catalogue().recipes) == list(RECIPES)
