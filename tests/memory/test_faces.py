"""The faces of memory are light: what is named is loaded, and nothing before."""

import pytest


@pytest.mark.parametrize("face", ["bank", "context", "contract", "heads", "reading", "titans"])
def test_a_face_loads_neither_torch_nor_its_own_modules(face, modules_after):
    loaded = modules_after(f"import scrubjay.memory.{face}")
    assert f"scrubjay.memory.{face}" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "sqlite3"})
    assert not [name for name in loaded if name.startswith(f"scrubjay.memory.{face}.")]


def test_naming_the_error_loads_the_laws_but_not_the_checker(modules_after):
    loaded = modules_after("from scrubjay.memory.contract import MemoryLawError")
    assert "scrubjay.memory.contract.laws" in loaded
    assert "scrubjay.memory.contract.check" not in loaded
