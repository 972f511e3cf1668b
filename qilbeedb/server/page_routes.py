"""The page for people: files that are sent as they are. What it shows it asks the other routes for, like any client."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from qilbee_core import NotFoundError
from qilbeedb.accounts import Permission
from qilbeedb.server.route import Call, Reply, route
from qilbeedb.wire import Nothing

__all__ = ["CONTENT_SECURITY_POLICY", "PAGE_ROUTES"]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes HTML or a script, wherever in the page somebody should try it.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),  # a new release is seen at once
)
_CONTENT_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
_INDEX = "index.html"
_LOGIN, _NO_LOGIN = b'<meta name="login" content="required">', b'<meta name="login" content="none">'


async def page(call: Call[Nothing]) -> Reply:
    """The page; it knows whether somebody has to log in."""
    its = _files()[_INDEX]
    return _reply(its if call.services.accounts is not None else its.replace(_LOGIN, _NO_LOGIN), ".html")


async def page_file(call: Call[Nothing]) -> Reply:
    """What the page is made of besides."""
    name = call.parameters["file"]
    content = _files().get(name)
    if content is None or name == _INDEX:
        raise NotFoundError("the page has no such file", remedy="open /")
    return _reply(content, name[name.rindex(".") :])


def _reply(content: bytes, suffix: str) -> Reply:
    return Reply(content, content_type=_CONTENT_TYPES[suffix], headers=_HEADERS)


@cache
def _files() -> Mapping[str, bytes]:
    """All files of the page by name: nothing else is ever sent, whatever is asked for."""
    return {file.name: file.read_bytes() for file in (files("qilbeedb.server") / "page").iterdir()}


PAGE_ROUTES = (
    route("GET", "/", Permission.PUBLIC, page, "The page for people", Nothing, None),
    route("GET", "/page/{file}", Permission.PUBLIC, page_file, "A file of the page", Nothing, None),
)
