"""Finding the route of a request by its path, segment by segment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import fields

from qilbeedb.server.metrics import Meter
from qilbeedb.server.route import Method, Route

__all__ = ["Endpoint", "Endpoints"]

_IN_QUERY = frozenset({"GET", "DELETE"})


class Endpoint:
    """A route with what is made for it once: its decoder, its counters, the names of its parameters."""

    __slots__ = ("decoder", "meter", "parameters", "route", "without_query")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.decoder: msgspec.json.Decoder[Struct] | None = None
        if route.method not in _IN_QUERY:
            self.decoder = msgspec.json.Decoder(route.takes)
        self.without_query: Struct | None = None
        """What the route takes where nothing is asked for, if it may be so: most requests have no query."""
        if self.decoder is None and not any(field.required for field in fields(route.takes)):
            self.without_query = route.takes()
        self.meter = Meter(route.method, route.path)
        self.parameters = [segment[1:-1] for segment in route.segments if segment.startswith("{")]


class _Node:
    """A place in the tree of paths: what may follow, by its text or as a parameter, and what ends here."""

    def __init__(self) -> None:
        self.texts: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.endpoints: dict[str, Endpoint] = {}

    def under(self, segment: str) -> _Node:
        """The node of a segment, made where there is none."""
        if not segment.startswith("{"):
            return self.texts.setdefault(segment, _Node())
        if self.parameter is None:
            self.parameter = _Node()
        return self.parameter


class Endpoints:
    """The endpoints of a table of routes; in a path, a text goes before a parameter.

    >>> from qilbeedb.server.memory_routes import MEMORY_ROUTES
    >>> endpoints = Endpoints(MEMORY_ROUTES)
    >>> found, values = endpoints.find("/memory/my-agent/statistics")
    >>> found["GET"].route.path, values
    ('/memory/{agent}/statistics', ['my-agent'])
    """

    def __init__(self, table: Iterable[Route]) -> None:
        self.all = [Endpoint(route) for route in table]
        self._root = _Node()
        for endpoint in self.all:
            node = self._root
            for segment in endpoint.route.segments:
                node = node.under(segment)
            method: Method = endpoint.route.method
            assert method not in node.endpoints, f"{method} {endpoint.route.path} is there twice"
            node.endpoints[method] = endpoint

    def find(self, path: str) -> tuple[Mapping[str, Endpoint], list[str]]:
        """Those of a path, by their methods, and the values of its parameters, still quoted; none: no such path."""
        node = self._root
        values: list[str] = []
        if path != "/":
            for segment in path[1:].split("/"):
                following = node.texts.get(segment)
                if following is None:
                    following = node.parameter
                    if following is None or not segment:
                        return {}, values
                    values.append(segment)
                node = following
        return node.endpoints, values
