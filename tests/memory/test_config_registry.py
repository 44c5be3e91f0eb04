"""Registry of config classes: redefinition, and entries that are imported at their first use."""

import dataclasses
from collections import OrderedDict

from scrubjay.memory.config_registry import Registry


def test_a_cell_that_is_run_again_registers_again():
    registry = Registry("memory", "register", {})

    def cell():
        @dataclasses.dataclass(frozen=True)
        class LeakyConfig:
            dim: int = 8

        registry.register("leaky", LeakyConfig)
        return LeakyConfig

    cell()
    again = cell()
    assert type(registry.configure("leaky")) is again


def test_a_string_is_imported_at_its_first_use():
    registry = Registry("container", "register", {"ordered": "collections:OrderedDict"})
    assert registry.names() == ["ordered"]
    assert registry["ordered"] is OrderedDict
    assert registry.name_of(OrderedDict()) == "ordered"
