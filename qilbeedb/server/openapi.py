"""The OpenAPI document, made from the tables of routes and the forms of bodies and answers: nothing is said twice."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from qilbee_core import JSON
from qilbeedb.accounts import Permission
from qilbeedb.server.route import Route
from qilbeedb.wire import ErrorAnswer, Nothing

__all__ = ["document"]

_REF = "#/components/schemas/{name}"
_IN_QUERY = frozenset({"GET", "DELETE"})
_ABOUT = "Durable memory for AI agents. Times are seconds since 1970; docs/server.md tells the rest."


def document(table: Sequence[Route], version: str) -> dict[str, JSON]:
    """The OpenAPI 3.1 document of the routes of ``table``.

    >>> from qilbeedb.server.memory_routes import MEMORY_ROUTES
    >>> paths = document(MEMORY_ROUTES, "1")["paths"]
    >>> paths["/memory/{agent}/episodes/{id}"]["get"]["summary"]
    'One episode'
    """
    forms = {ErrorAnswer, *(route.takes for route in table)} | {route.gives for route in table if route.gives}
    _, schemas = msgspec.json.schema_components(sorted(forms, key=lambda form: form.__name__), ref_template=_REF)
    paths: dict[str, dict[str, JSON]] = {}
    for route in table:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "QilbeeDB", "version": version, "description": _ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The access token of a login."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(route: Route, schemas: Mapping[str, Mapping[str, JSON]]) -> dict[str, JSON]:
    public = route.permission is Permission.PUBLIC
    needs = f"Needs the permission {route.permission.value!r}."
    if route.dry_run is not None:
        needs += f" A dry run needs {route.dry_run.value!r}."
    operation: dict[str, JSON] = {
        "operationId": operation_id(route),
        "summary": route.summary,
        "description": inspect.cleandoc(route.handler.__doc__ or "") + ("" if public else f"\n\n{needs}"),
        "parameters": [*_path_parameters(route), *_query_parameters(route, schemas)],
        "responses": {
            **{str(status): _success(route) for status in (route.status, *route.also)},
            "default": _json("What went wrong.", ErrorAnswer),
        },
        "security": [] if public else [{"token": []}, {"apiKey": []}],
    }
    if route.method not in _IN_QUERY and route.takes is not Nothing:
        form = schemas[route.takes.__name__]
        operation["requestBody"] = {"required": bool(form.get("required")), **_content(route.takes)}
    return operation


def operation_id(route: Route) -> str:
    """A name for the operation, as code generators want one."""
    words = [segment.strip("{}").replace("-", "_").replace(".", "_") for segment in route.segments]
    return "_".join([route.method.lower(), *words]) or route.method.lower()


def _path_parameters(route: Route) -> Iterable[dict[str, JSON]]:
    for segment in route.segments:
        if segment.startswith("{"):
            yield {"name": segment[1:-1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameters(route: Route, schemas: Mapping[str, Mapping[str, JSON]]) -> Iterable[dict[str, JSON]]:
    if route.method not in _IN_QUERY or route.takes is Nothing:
        return
    form = schemas[route.takes.__name__]
    properties, required = form["properties"], form["required"]
    assert isinstance(properties, Mapping)
    assert isinstance(required, Sequence)
    for name, schema in properties.items():
        assert isinstance(schema, Mapping)
        yield {"name": name, "in": "query", "required": name in required, "schema": _in_query(schema)}


def _in_query(schema: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """What may stand in a query, where everything is text: "null" is a text like any other, where texts are taken."""
    choices = schema.get("anyOf")
    if isinstance(choices, Sequence) and len(choices) == 2 and {"type": "null"} in choices:
        for choice in choices:
            if isinstance(choice, Mapping) and choice.get("type") == "string":
                return choice
    return schema


def _success(route: Route) -> dict[str, JSON]:
    return {"description": "Done."} if route.gives is None else _json("Done.", route.gives)


def _json(description: str, form: type[Struct]) -> dict[str, JSON]:
    return {"description": description, **_content(form)}


def _content(form: type[Struct]) -> dict[str, JSON]:
    return {"content": {"application/json": {"schema": {"$ref": _REF.format(name=form.__name__)}}}}
