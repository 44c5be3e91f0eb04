"""The order of the suite."""

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")


def pytest_collection_modifyitems(items):
    """Begin with the tests that take a minute, or one process would end the suite on them alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
