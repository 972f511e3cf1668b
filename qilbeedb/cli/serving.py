"""``qilbee serve``: a flag for each setting of the server."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, get_args, get_origin

import msgspec
import typer
from msgspec import Meta
from msgspec.structs import FieldInfo, fields

from qilbee_core import SettingsError
from qilbee_core.cli import telling_errors
from qilbeedb.server.settings import ServerSettings, ServiceSettings

__all__ = ["serve"]

_OWN = {
    "config": Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="TOML file with the settings."),
    ],
    "data": Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Directory of the store, or URL of its database.  [default: that of the configuration]",
        ),
    ],
}


def _serve(config: Path | None, data: str | None, **given: object) -> None:
    """Serve the memories of a store over HTTP.

    Each setting of the table [server] is a flag here, a variable QILBEE_SERVER_..., and a key in FILE; a flag beats a
    variable, which beats the file. Ctrl-C and SIGTERM end it: requests under way are finished, and the store is closed.
    """
    try:
        from qilbeedb.server.serve import serve  # noqa: PLC0415  # what it needs is an extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"the server needs {error.name}, which is not installed", remedy="pip install 'qilbee-core[server]'"
        ) from error
    environ = dict(os.environ)
    for name, value in given.items():
        if value is not None:
            environ[f"QILBEE_SERVER_{name.upper()}"] = (
                value if isinstance(value, str) else msgspec.json.encode(value).decode()
            )
    settings = (
        ServiceSettings.load(environ=environ) if config is None else ServiceSettings.from_toml(config, environ=environ)
    )
    serve(
        settings.at(data),
        ready=lambda url: typer.echo(f"QilbeeDB listens on {url}, for people; for programs see {url}/docs"),
    )


def _parameters() -> Iterator[inspect.Parameter]:
    for name, annotation in _OWN.items():
        yield _parameter(name, annotation)
    for field in fields(ServerSettings):
        yield _parameter(field.name, _flag(field))


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(field: FieldInfo) -> object:
    """What typer makes a flag of: its type, its bounds and its help are those of the setting."""
    annotated = next(part for part in (field.type, *get_args(field.type)) if get_origin(part) is Annotated)
    kind, meta = get_args(annotated)
    assert isinstance(meta, Meta)
    default = "" if field.default in (None, ()) else f"  [default: {str(field.default).lower()}]"
    told = f"{meta.description}{default}"
    name = f"--{field.name.replace('_', '-')}"
    if kind is bool:
        return Annotated[bool | None, typer.Option(name, help=told, show_default=False)]
    if kind in (int, float):
        return Annotated[kind | None, typer.Option(name, min=meta.ge, max=meta.le, help=told, metavar="N")]
    if get_origin(kind) is Sequence:
        return Annotated[
            list[str] | None, typer.Option(name, help=f"{told} May be given several times.", metavar="TEXT")
        ]
    if choices := get_args(kind):
        return Annotated[
            str | None, typer.Option(name, help=told, metavar="|".join(choices), callback=_one_of(choices))
        ]
    return Annotated[str | None, typer.Option(name, help=told, metavar="TEXT")]


def _one_of(choices: Sequence[str]) -> Callable[[str | None], str | None]:
    def checked(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return checked


_serve.__name__ = "serve"
_serve.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]
_serve.__annotations__ = {parameter.name: parameter.annotation for parameter in _parameters()}
serve = telling_errors(_serve)
