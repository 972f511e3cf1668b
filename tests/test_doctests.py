"""Every example in a docstring of the public packages runs."""

import doctest
import importlib
import pkgutil

import pytest

import qilbee_core
import qilbeedb

MODULES = ["qilbeedb"] + [
    info.name
    for package in (qilbee_core, qilbeedb)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not info.name.endswith("__main__")
]


@pytest.mark.usefixtures("search_as_by_default")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_each_module_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
