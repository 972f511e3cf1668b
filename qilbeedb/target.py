"""Where a database is: what ``QilbeeDB(...)`` is given, read and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from qilbee_core import MemorySettings, ProviderNotFoundError, SettingsError, StorageSettings

__all__ = ["Config", "EmbeddedTarget", "ServerTarget", "missing", "target_of"]

Config = Mapping[str, object]

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
_SERVER = re.compile("https?://", re.I)
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


class ServerTarget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server, and how to talk to it."""

    uri: str
    api_key: str | None = None
    timeout: float = 30.0
    """Seconds for each step of an attempt: to connect, to send, to wait for bytes of the answer."""
    verify_ssl: bool | str = True
    """Whether the server's certificate is checked; or the path of a file with those of its authorities."""
    retries: int = 6
    """How many more attempts follow a first one that failed."""

    def __post_init__(self) -> None:
        if self.api_key is not None and not _HEADER_VALUE.fullmatch(self.api_key):
            raise SettingsError("api_key is not the text of a key", remedy="give it as it was shown, without spaces")
        if not self.timeout > 0:
            raise SettingsError(f"timeout is {self.timeout}", remedy="give seconds, more than 0")
        if self.retries < 0:
            raise SettingsError(f"retries is {self.retries}", remedy="give a whole number from 0 up")


class EmbeddedTarget(Struct, frozen=True, kw_only=True):
    """A store that is opened in this process: in a directory of this machine, or in a database."""

    uri: str
    """Where it is, as it may be shown: without a password."""
    place: str | os.PathLike[str]
    """Its path, or the URL of the database."""
    memory: MemorySettings | None
    storage: dict[str, object]


def target_of(given: str | os.PathLike[str] | Config) -> ServerTarget | EmbeddedTarget:
    """What ``given`` names: an ``http`` URL a server, another URL the database of a store, anything else a directory.

    >>> target_of("http://localhost:7474").timeout
    30.0
    >>> target_of({"uri": "./data", "sync_writes": True}).storage
    {'sync_writes': True}
    >>> target_of("postgresql://bot:secret@db.example/memory").uri
    'postgresql://bot@db.example/memory'
    >>> target_of("localhost:7474")
    Traceback (most recent call last):
    ...
    qilbee_core.errors.SettingsError: 'localhost:7474' is no URL: give 'http://localhost:7474'
    """
    config: dict[str, object] = dict(given) if isinstance(given, Mapping) else {"uri": given}
    uri = config.pop("uri", None)
    if not isinstance(uri, str | os.PathLike):
        raise SettingsError(f"uri is {type(uri).__name__}", remedy='give a URL like "http://localhost:7474", or a path')
    if isinstance(uri, str) and _HOST_AND_PORT.fullmatch(uri):
        raise SettingsError(f"{uri!r} is no URL", remedy=f"give {'http://' + uri!r}")
    is_url = isinstance(uri, str) and "://" in uri
    if isinstance(uri, str) and _SERVER.match(uri):
        _check_url(uri)
        if "memory" in config:
            raise SettingsError("a server has its own settings of memory", remedy="set [memory] in its configuration")
        try:
            return msgspec.convert({"uri": uri, **config}, ServerTarget)
        except msgspec.ValidationError as error:
            keys = ", ".join(ServerTarget.__struct_fields__)
            raise SettingsError(str(error), remedy=f"the keys for a server are {keys}") from None
    memory = config.pop("memory", None)
    if memory is not None and not isinstance(memory, MemorySettings):
        raise SettingsError(f"memory is {type(memory).__name__}", remedy="give MemoryConfig(...) of qilbeedb.memory")
    shown = StorageSettings(dsn=os.fspath(uri)).where if is_url else os.fspath(uri)
    return EmbeddedTarget(uri=shown, place=uri, memory=memory, storage=config)


def _check_url(uri: str) -> None:
    parts = urlsplit(uri)
    if "@" in parts.netloc:  # not quoted: it holds a password
        raise SettingsError("the URL holds a name or a password", remedy="leave them out, and use login() or api_key")
    try:
        is_whole = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise SettingsError(f"{uri!r} names no host and port", remedy='give a URL like "http://localhost:7474"')


def missing(error: ImportError, target: ServerTarget | EmbeddedTarget) -> ProviderNotFoundError:
    """What to say where a package is missing for ``target``."""
    install = "'qilbee-core[client]'" if isinstance(target, ServerTarget) else "qilbee-core, with its dependencies"
    return ProviderNotFoundError(f"{target.uri!r} cannot be opened: {error}", remedy=f"install {install}")
