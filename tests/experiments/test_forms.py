"""Configs as data: what is kept of one is all of it that has a flag, and data it is."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from scrubjay.experiments import RECIPES, with_memory
from scrubjay.experiments.forms import form_of, kept, made


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("memory", ["gru", "hcam", "stack"])
def test_what_is_kept_is_all_that_has_a_flag(recipe, memory):
    config = with_memory(RECIPES[recipe](), memory)
    forms = {}
    values, forms = json.loads(json.dumps([kept(config, forms), forms]))
    values = dataclasses.asdict(made(values, forms))
    recorded = {field.name for field in dataclasses.fields(config) if field.metadata.get("recorded")}
    assert values == {
        name: value for name, value in dataclasses.asdict(config).items() if name not in recorded
    }


def test_a_fields_help_stands_below_it_or_below_the_base_classs():
    @dataclass
    class Base:
        number: int = 3
        """How many."""
        bare: str = ""

    @dataclass
    class Derived(Base):
        number: int = 4

    fields = form_of(Derived)["fields"]
    assert fields["number"] == {"type": "int", "help": "How many.", "default": 4}
    assert fields["bare"]["help"] is None


def test_a_type_that_has_no_name_is_refused():
    @dataclass
    class Strange:
        words: bytes = b""

    with pytest.raises(KeyError, match="bytes"):
        form_of(Strange)
