"""Package imports of memory are lazy: a module is loaded when a name in it is used."""

import pytest


@pytest.mark.parametrize("package", ["bank", "context", "contract", "titans"])
def test_a_package_loads_neither_torch_nor_its_own_modules(package, modules_after):
    module_names = modules_after(f"import scrubjay.memory.{package}")
    assert f"scrubjay.memory.{package}" in module_names
    assert module_names.isdisjoint({"torch", "numpy", "sqlite3"})
    assert not [name for name in module_names if name.startswith(f"scrubjay.memory.{package}.")]


@pytest.mark.slow
def test_naming_the_error_loads_the_laws_but_not_the_checker(modules_after):
    module_names = modules_after("from scrubjay.memory.contract import MemoryLawError")
    assert "scrubjay.memory.contract.laws" in module_names
    assert "scrubjay.memory.contract.check" not in module_names
