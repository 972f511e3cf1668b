"""The OpenAPI document says what the server does: made from its table, and held against its answers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qilbeedb.accounts import Permission
from qilbeedb.server.app import ROUTES
from qilbeedb.server.openapi import document, operation_id
from qilbeedb.server.route import Route

from .serving import Serving

DOCUMENT: Any = document(ROUTES, "1")


def test_the_server_shows_the_document_of_its_table(served: Serving) -> None:
    shown = served.client.get("/openapi.json").json()
    assert shown["paths"] == DOCUMENT["paths"]
    assert shown["openapi"] == "3.1.0"


def test_every_route_is_an_operation_and_every_operation_a_route() -> None:
    operations = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert operations == {(route.method, route.path) for route in ROUTES}
    assert len({operation_id(route) for route in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_has_the_parameters_the_body_and_the_rights_of_its_route(route: Route) -> None:
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
    assert in_path == re.findall(r"{(\w+)}", route.path)
    assert operation["summary"] == route.summary
    assert operation["description"]
    assert (operation["security"] == []) == (route.permission is Permission.PUBLIC)
    fields = set(route.takes.__struct_encode_fields__)
    in_query = {each["name"] for each in operation["parameters"] if each["in"] == "query"}
    if route.method in {"GET", "DELETE"}:
        assert in_query == fields
        assert "requestBody" not in operation
    else:
        assert in_query == set()
        assert ("requestBody" in operation) == bool(fields)
    assert {str(route.status), *map(str, route.also), "default"} == set(operation["responses"])


def test_an_answer_with_another_status_than_usual_is_in_the_document_too(served: Serving) -> None:
    body = {"episodeType": "x", "content": {}, "idempotencyKey": "twice"}
    statuses = {str(served.client.post("/memory/a/episodes", json=body).status_code) for _ in range(2)}
    assert statuses == {"200", "201"}
    assert statuses < set(DOCUMENT["paths"]["/memory/{agent}/episodes"]["post"]["responses"])
    assert "503" in DOCUMENT["paths"]["/health"]["get"]["responses"]


def test_a_text_of_a_query_is_any_text_null_too(served: Serving) -> None:
    operation = DOCUMENT["paths"]["/memory/{agent}/episodes"]["get"]
    (parameter,) = (each for each in operation["parameters"] if each["name"] == "episodeType")
    assert parameter["schema"]["type"] == "string"
    for kind in ("null", "note"):
        body = {"episodeType": kind, "content": {"kind": kind}}
        assert served.client.post("/memory/a/episodes", json=body).status_code == 201
    found = served.client.get("/memory/a/episodes", params={"episodeType": "null"}).json()["episodes"]
    assert [episode["content"]["kind"] for episode in found] == ["null"]


def test_every_reference_leads_to_a_schema_that_says_what_it_is() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/([A-Za-z]+)", str(DOCUMENT)))
    assert references <= set(schemas)
    for name in references:
        assert schemas[name].get("description"), name


def test_requests_allow_no_other_keys() -> None:
    for route in ROUTES:
        if route.method not in {"GET", "DELETE"} and route.takes.__struct_encode_fields__:
            assert DOCUMENT["components"]["schemas"][route.takes.__name__]["additionalProperties"] is False
