"""The public names of the client: all there, all told, and those of the owner's specification among them."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

import qilbee_core
import qilbeedb.exceptions
import qilbeedb.memory
from qilbeedb.errors import ERRORS

MODULES = [qilbeedb, qilbeedb.memory, qilbeedb.exceptions]
OWN_ERRORS = [
    each
    for name in qilbeedb.exceptions.__all__
    if (each := getattr(qilbeedb.exceptions, name)).__module__ == "qilbeedb.exceptions"
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.__name__))
def test_the_public_names_are_there_and_say_what_they_are(module: ModuleType) -> None:
    for name in module.__all__:
        given = getattr(module, name)
        assert not inspect.isclass(given) or given.__doc__
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("kind", [qilbeedb.QilbeeDB, qilbeedb.AsyncQilbeeDB, *qilbeedb.QilbeeDB.__mro__[1:2]])
def test_no_public_signature_says_any(kind: type) -> None:
    for name, member in inspect.getmembers(kind, inspect.isfunction):
        assert name.startswith("_") or (member.__doc__ and not re.search(r"\bAny\b", str(member.__annotations__)))


def test_both_databases_have_the_same_verbs() -> None:
    def verbs(kind: type) -> dict[str, list[inspect.Parameter]]:
        members = inspect.getmembers(kind, inspect.isfunction)
        return {name: [*inspect.signature(member).parameters.values()] for name, member in members if name[0] != "_"}

    assert verbs(qilbeedb.AsyncQilbeeDB) == verbs(qilbeedb.QilbeeDB)


def test_the_memory_error_of_the_specification_is_the_base_of_all() -> None:
    assert qilbeedb.exceptions.MemoryError is qilbee_core.QilbeeError
    for name in qilbeedb.exceptions.__all__:
        assert issubclass(getattr(qilbeedb.exceptions, name), qilbeedb.exceptions.MemoryError)


@pytest.mark.parametrize("kind", OWN_ERRORS, ids=lambda kind: str(kind.__name__))
def test_each_error_of_the_network_has_a_remedy_and_stands_in_the_tree(kind: type[qilbee_core.QilbeeError]) -> None:
    assert vars(kind)["default_remedy"]
    assert re.search(rf"── {kind.__name__}\b", qilbeedb.exceptions.__doc__ or "")


def test_whatever_a_server_raises_can_be_caught_by_its_name() -> None:
    named = {getattr(qilbeedb.exceptions, name) for name in qilbeedb.exceptions.__all__}
    assert {kind.error for kind in ERRORS} <= named


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'QilbeDB'"):
        qilbeedb.QilbeDB  # type: ignore[attr-defined]  # noqa: B018
