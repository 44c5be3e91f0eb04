"""Registry of memories: names round-trip, and errors list the choices."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch

from scrubjay import memory

from .oracles import fit_cue


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


@pytest.mark.slow
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


def paper_values(name):
    return type(memory.make_config(name)).paper_values


@pytest.mark.parametrize("name", memory.list_memories())
def test_paper_means_the_values_of_the_paper_or_a_reason(name):
    values = paper_values(name)
    if isinstance(values, str):
        with pytest.raises(ValueError, match=f"memory '{name}' has no variant with paper=True: ") as error:
            memory.make(name, paper=True)
        assert str(error.value).endswith(values)
        return
    config = memory.make_config(name, paper=True)
    assert config == memory.make_config(name, **dict[str, Any](values))
    assert memory.make(name, paper=True, dim=10).config == dataclasses.replace(config, dim=10)
    # All values differ from the defaults, and explicit fields take precedence over them.
    default = memory.make_config(name)
    assert all(value != getattr(default, field) for field, value in values.items())
    own: dict[str, Any] = {field: getattr(default, field) for field in values}
    assert memory.make_config(name, paper=True, **own) == default


def test_a_paper_of_an_unknown_memory_or_of_one_that_states_none_is_refused():
    with pytest.raises(ValueError, match="unknown memory 'hcma'"):
        memory.make("hcma", paper=True)
    with pytest.raises(TypeError, match="memory 'gru' has paper='no': must be True or False"):
        memory.make("gru", paper="no")
    assert memory.MemoryConfig.paper_values == "its config class states no values of a paper"


VARIANTS = [
    name for name in memory.list_memories() if isinstance(paper_values(name), dict) and paper_values(name)
]


@pytest.mark.slow
@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_papers_learn(name):
    torch.manual_seed(0)
    # Memories that loop over steps get fewer updates.
    updates = 50 if "follow_paper" in paper_values(name) else 100
    assert fit_cue(memory.make(name, paper=True, dim=16), updates) < 0.3


def test_a_memory_without_a_state_does_not_learn():
    torch.manual_seed(0)
    assert fit_cue(memory.make("none", dim=16), updates=100) > 0.9
