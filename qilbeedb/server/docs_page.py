"""A page that shows what the server answers, made once, with nothing to load from elsewhere."""

from __future__ import annotations

import inspect
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape

import msgspec

from qilbee_core import JSON
from qilbeedb.server.route import Route

__all__ = ["CONTENT_SECURITY_POLICY", "page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
body { color: #1b1b1b; background: #fff; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: .75rem; overflow-x: auto; }
section { border-top: 1px solid #ccc; padding: .25rem 0; }
summary { cursor: pointer; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #161616; } pre { background: #262626; } }
"""
_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def page(table: Sequence[Route], version: str) -> bytes:
    """The page about the routes of ``table``, in HTML."""
    sections = "\n".join(map(_section, table))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>QilbeeDB: HTTP interface</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>
<body>
<h1>QilbeeDB {escape(version)}: HTTP interface</h1>
<p>JSON in and out; times are seconds since 1970. The same for programs: <a href="/openapi.json">openapi.json</a>.
An error is <code>{{"error", "code", "remedy", "request_id"}}</code>.</p>
<main>
{sections}
</main>
</body>
</html>
""".encode()


def _section(route: Route) -> str:
    needs = f"Needs <code>{escape(route.permission.value)}</code>."
    if route.dry_run is not None:
        needs += f" A dry run needs <code>{escape(route.dry_run.value)}</code>."
    where = "Query" if route.method in {"GET", "DELETE"} else "Body"
    return f"""<section><details><summary><span class="method">{route.method}</span>
<code>{escape(route.path)}</code> {escape(route.summary)}</summary>
<p>{escape(inspect.cleandoc(route.handler.__doc__ or ""))} {needs}</p>
{_form(where, msgspec.json.schema(route.takes))}
{"" if route.gives is None else _form("Answer", msgspec.json.schema(route.gives))}
</details></section>"""


def _form(title: str, schema: dict[str, JSON]) -> str:
    definitions = schema.get("$defs", {})
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    own = definitions.get(name, schema) if isinstance(definitions, dict) else schema
    if not isinstance(own, dict) or not own.get("properties"):
        return ""
    about = escape(str(own.get("description", "")))
    shown = escape(msgspec.json.format(msgspec.json.encode(own["properties"]), indent=2).decode())
    return f"<h3>{title}</h3><p>{about}</p><pre>{shown}</pre>"
