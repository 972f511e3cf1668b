"""The public names: all there, all told, and all that a plugin needs."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qilbee_core
import qilbee_core.testing
from qilbee_core import QilbeeError, errors

PLUGINS = Path(__file__).parents[1] / "plugins"
PUBLIC = {"qilbee_core": set(qilbee_core.__all__), "qilbee_core.testing": set(qilbee_core.testing.__all__)}


def in_order(names: list[str]) -> list[str]:
    """Constants, then classes, then functions, as ruff sorts them."""
    return sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))


def imported_by(module: object) -> set[str]:
    """The names that a package takes from its modules, at once or when they are first asked for."""
    tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    later = [node for branch in tree.body if isinstance(branch, ast.If) for node in branch.body]
    froms = (node for node in (*tree.body, *later) if isinstance(node, ast.ImportFrom))
    package = str(module.__name__).split(".")[0]  # type: ignore[attr-defined]
    return {alias.asname or alias.name for node in froms if package in str(node.module) for alias in node.names}


@pytest.mark.parametrize("module", [qilbee_core, qilbee_core.testing], ids=lambda module: str(module.__name__))
def test_the_public_names_are_there_sorted_and_complete(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    assert [name for name in names if not hasattr(module, name)] == []
    assert names == in_order(names)
    assert set(names) == imported_by(module)


@pytest.mark.parametrize("name", qilbee_core.__all__)
def test_each_public_class_and_function_says_what_it_is(name: str) -> None:
    given = getattr(qilbee_core, name)
    if inspect.isclass(given) or inspect.isfunction(given):
        assert given.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'open_stor'"):
        qilbee_core.open_stor  # type: ignore[attr-defined]  # noqa: B018
    assert set(qilbee_core.__all__) <= set(dir(qilbee_core))


# Signatures


def annotations_of(given: object) -> Iterator[tuple[str, object]]:
    """What ``given`` and its public members are annotated with, as it is written."""
    if inspect.isfunction(given):
        yield from given.__annotations__.items()
    elif isinstance(given, property):
        yield from annotations_of(given.fget)
    elif isinstance(given, classmethod | staticmethod):
        yield from annotations_of(given.__func__)
    elif inspect.isclass(given):
        yield from inspect.get_annotations(given).items()
        for name, member in vars(given).items():
            if not name.startswith("_") or name in {"__init__", "__call__", "__enter__", "__exit__"}:
                yield from ((f"{name}.{argument}", annotation) for argument, annotation in annotations_of(member))


def says_any(annotation: object) -> bool:
    return re.search(r"\bAny\b", str(annotation)) is not None


def test_any_is_seen_where_it_stands() -> None:
    class Vague:
        field: "dict[str, Any]"  # type: ignore[name-defined]  # noqa: F821, UP037

        def method(self, value: "Any") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
            pass

    assert [name for name, annotation in annotations_of(Vague) if says_any(annotation)] == ["field", "method.value"]


@pytest.mark.parametrize("name", qilbee_core.__all__)
def test_no_public_signature_says_any(name: str) -> None:
    annotations = list(annotations_of(getattr(qilbee_core, name)))
    assert [member for member, annotation in annotations if says_any(annotation)] == []


# What plugins use


def core_names_of(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of everything that ``source`` imports from qilbee_core."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qilbee_core":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "qilbee_core")


def private_names_of(source: str) -> list[tuple[str, str]]:
    return [(module, name) for module, name in core_names_of(source) if name not in PUBLIC.get(module, ())]


def test_a_private_import_is_seen() -> None:
    source = "from qilbee_core import Put, T\nfrom qilbee_core.keys import Space\nimport qilbee_core.errors\n"
    assert private_names_of(source) == [("qilbee_core", "T"), ("qilbee_core.keys", "Space"), ("qilbee_core.errors", "")]


@pytest.mark.parametrize("path", sorted(PLUGINS.rglob("*.py")), ids=lambda path: str(path.relative_to(PLUGINS)))
def test_plugins_use_public_names_only(path: Path) -> None:
    assert private_names_of(path.read_text()) == []


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in PLUGINS.glob("*/pyproject.toml")), ids=lambda path: path.name
)
def test_each_plugin_has_what_a_package_needs(folder: Path) -> None:
    (package,) = [path for path in folder.glob("qilbee_*") if path.is_dir() and not path.name.endswith(".egg-info")]
    assert (package / "py.typed").exists()
    assert (folder / "README.md").exists()
    assert list((folder / "tests").glob("test_*.py"))
    assert f"]({folder.name})" in (PLUGINS / "README.md").read_text()
    assert "entry-points.qilbee_core" in (folder / "pyproject.toml").read_text()


# Errors

ERRORS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: str(kind.__name__))
def test_each_error_says_what_it_means_and_what_to_do(kind: type[QilbeeError]) -> None:
    assert "__doc__" in vars(kind)
    assert kind.__doc__
    if kind is not QilbeeError:
        assert vars(kind)["default_remedy"]
        assert str(kind("it happened")) == f"it happened: {kind.default_remedy}"
    assert str(kind("it happened", remedy="do that")) == "it happened: do that"


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: str(kind.__name__))
def test_each_error_is_public_and_stands_in_the_tree(kind: type[QilbeeError]) -> None:
    assert getattr(qilbee_core, kind.__name__) is kind
    assert issubclass(kind, QilbeeError)
    assert kind is QilbeeError or re.search(rf"── {kind.__name__}\b", errors.__doc__ or "")
