"""A memory of a module of the user's, by the command."""

import re

OWN_MEMORY = """
from dataclasses import dataclass
from scrubjay.memory import register
from scrubjay.memory.gru import GRUConfig

@dataclass(frozen=True)
class OwnConfig(GRUConfig):
    pass

register("mine", OwnConfig)
"""


def test_a_memory_of_a_module_beside_the_user_is_known(scrubjay, tmp_path, monkeypatch):
    """In the processes that `compare` starts, and where a run is opened."""
    (tmp_path / "my_memory.py").write_text(OWN_MEMORY)
    monkeypatch.setenv("SCRUBJAY_IMPORT", "my_memory")
    flags = ["--total-steps", 64, "--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 3]
    words = ["--memories", "mine", "--recipes", "tmaze-demo", "--seeds", "0", "--out", "runs"]
    code, _, err = scrubjay("compare", *words, "--", "--set", "corridor_length=3", *flags)
    assert code == 0, err
    code, out, err = scrubjay("eval", "runs/tmaze-demo-mine-s0", "--episodes", "2")
    assert code == 0, err
    assert "tmaze-demo mine s0" in out
    code, out, err = scrubjay("list")
    assert code == 0, err
    assert re.search("mine +256 B", out)
    monkeypatch.delenv("SCRUBJAY_IMPORT")
    code, _, err = scrubjay("eval", "runs/tmaze-demo-mine-s0")
    assert code == 2
    assert "config.json: unknown memory 'mine'; choose from" in err
    assert err.endswith("; SCRUBJAY_IMPORT names a module that registers your own\n")


def test_who_has_a_memory_of_their_own_is_told_how_it_is_known(here, monkeypatch):
    code, _, err = here("train", "tmaze-demo", "--memory", "mine")
    assert (code, "SCRUBJAY_IMPORT names a module that registers your own" in err) == (2, True)
    monkeypatch.setenv("SCRUBJAY_IMPORT", "./my_memory.py")
    code, _, err = here("list")
    assert (code, err) == (
        2,
        "scrubjay: SCRUBJAY_IMPORT=./my_memory.py: expected a module's name, as my_memory is\n",
    )
    monkeypatch.setenv("SCRUBJAY_IMPORT", "json, my_memries")
    code, _, err = here("list")
    assert (code, err) == (2, "scrubjay: SCRUBJAY_IMPORT=my_memries: No module named 'my_memries'\n")
