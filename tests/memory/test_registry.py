"""Registry of memories: names round-trip, and errors list the choices."""

import dataclasses
import subprocess
import sys

import pytest

from scrubjay import memory


@pytest.mark.parametrize("name", memory.list_memories())
def test_config_names_round_trip_and_sizes_are_frozen(name):
    config = memory.make_config(name, dim=10)
    assert memory.name_of(config) == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 12  # pyright: ignore[reportAttributeAccessIssue]


def test_unknown_names_and_fields_come_with_the_choices():
    with pytest.raises(ValueError, match=r"unknown memory 'hcma'; choose from .*hcam.*did you mean 'hcam'"):
        memory.make("hcma", dim=8)
    with pytest.raises(ValueError, match=r"'gru' has no field chunk_size; its fields are dim"):
        memory.make("gru", dim=8, chunk_size=4)
    with pytest.raises(ValueError, match="'gru' has dim='8': must be an integer"):
        memory.make("gru", dim="8")
    with pytest.raises(ValueError, match="already registered"):
        memory.register("gru", type(memory.make_config("gru")))


def test_registering_another_object_than_a_config_class_is_refused():
    class Module(memory.Memory):
        pass

    class PlainConfig(memory.MemoryConfig):
        decay: float = 0.9

    for what in (Module, memory.make_config("gru"), 3):
        with pytest.raises(TypeError, match=r"memory 'leaky': .* is not a frozen dataclass"):
            memory.register("leaky", what)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"PlainConfig adds fields .*@dataclass\(frozen=True\)"):
        memory.register("leaky", PlainConfig)
    assert "leaky" not in memory.list_memories()


def test_a_memory_is_imported_at_the_first_use_of_its_name():
    code = (
        "import sys; from scrubjay import memory; "
        "config = memory.make_config('gru'); assert memory.name_of(config) == 'gru'; "
        "assert 'hcam' in memory.list_memories(); assert 'scrubjay.memory.gru' in sys.modules; "
        "assert 'scrubjay.memory.hcam' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_that_only_has_the_name_of_a_registered_class_is_not_registered():
    original = type(memory.make_config("gru"))
    twin = type(original.__name__, (original,), {"__module__": original.__module__})
    with pytest.raises(ValueError, match="GRUConfig is not registered"):
        memory.name_of(twin())
