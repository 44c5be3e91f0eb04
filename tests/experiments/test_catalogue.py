"""The stored catalogue equals the registries."""

from scrubjay.experiments import RECIPES
from scrubjay.experiments.catalogue import build_catalogue, load_catalogue


def test_the_stored_catalogue_is_up_to_date():
    assert load_catalogue() == build_catalogue(), "run: python -P -m scrubjay.experiments.catalogue"


def test_recipes_are_in_the_order_of_the_registry():
    assert list(load_catalogue().recipes) == list(RECIPES)
