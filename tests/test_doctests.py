"""Every example in a docstring of the public packages runs."""

import doctest
import importlib
import pkgutil

import pytest

import qilbee_core

MODULES = [
    info.name
    for info in pkgutil.walk_packages(qilbee_core.__path__, "qilbee_core.")
    if not info.name.endswith("__main__")
]


@pytest.mark.usefixtures("search_as_by_default")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_each_module_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
