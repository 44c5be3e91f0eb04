"""Configs as data: `to_dict` holds every field that has a flag, as plain data."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from scrubjay.experiments import RECIPES, with_memory
from scrubjay.experiments.forms import build_schema, from_dict, to_dict


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("memory", ["gru", "hcam", "stack"])
def test_to_dict_holds_every_field_that_has_a_flag(recipe, memory):
    config = with_memory(RECIPES[recipe](), memory)
    forms = {}
    values, forms = json.loads(json.dumps([to_dict(config, forms), forms]))
    values = dataclasses.asdict(from_dict(values, forms))
    recorded_names = {field.name for field in dataclasses.fields(config) if field.metadata.get("recorded")}
    assert values == {
        name: value for name, value in dataclasses.asdict(config).items() if name not in recorded_names
    }


def test_the_help_of_a_field_is_inherited_from_the_base_class():
    @dataclass
    class Base:
        number: int = 3
        """Number of items."""
        bare: str = ""

    @dataclass
    class Subclass(Base):
        number: int = 4

    fields = build_schema(Subclass)["fields"]
    assert fields["number"] == {"type": "int", "help": "Number of items.", "default": 4}
    assert fields["bare"]["help"] is None


def test_a_type_that_has_no_name_is_refused():
    @dataclass
    class Strange:
        words: bytes = b""

    with pytest.raises(KeyError, match="bytes"):
        build_schema(Strange)
