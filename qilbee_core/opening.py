"""Opening the engine of a store, as its settings say: in a directory that is ours, or in a database."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from qilbee_core.catalog import find_store_id
from qilbee_core.config import Settings
from qilbee_core.errors import InvalidError, ProviderNotFoundError, SettingsError, shown
from qilbee_core.interfaces import (
    BackendOptions,
    MayOpen,
    StorageBackend,
    SupportsNativeCompression,
    SupportsSequence,
)
from qilbee_core.limits import check_flag
from qilbee_core.marker import claim, directory_error, unclaim
from qilbee_core.plugins import Plugins
from qilbee_core.search.analysis import analyser
from qilbee_core.watermark import WATERMARK_NAME, Watermark

__all__ = ["may_open", "open_backend", "settings_of", "value_codec"]

log = logging.getLogger("qilbee_core.store")


def settings_of(target: str | os.PathLike[str] | Settings | None, overrides: Mapping[str, object]) -> Settings:
    """The settings that ``open_store(target, **overrides)`` goes by."""
    settings = target if isinstance(target, Settings) else Settings.load().at(target)
    return settings.with_storage(overrides)


def open_backend(
    settings: Settings, plugins: Plugins, *, recover: str | None = None, read_only: bool = False, create: bool = True
) -> tuple[StorageBackend, Watermark | None]:
    """The engine, and the watermark of one that keeps files and may change them."""
    if recover not in (None, "tail"):
        raise InvalidError(f"recover is {shown(recover)}", remedy='give "tail", or leave it out')
    check_flag(read_only, "read_only")
    check_flag(create, "create")
    if recover is not None and read_only:
        raise InvalidError("to recover a store is to change it", remedy="leave read_only out")
    storage = settings.storage
    directory = Path(storage.data_path)
    name, codec = storage.backend, storage.codec
    if name is None and storage.dsn is not None:
        name = _backend_of(storage.dsn, plugins)
    if storage.dsn is not None and name is not None and plugins.backends.find(name).directory:
        raise SettingsError(
            f"the {name} backend keeps files and has no use for a dsn", remedy="leave out dsn, or backend"
        )
    plugins.codecs.find(codec)
    plugins.serializers.find(storage.serializer)
    analyser(settings.search.language)
    is_new = False
    watermark: Watermark | None = None
    try:
        if name is None or plugins.backends.find(name).directory:
            name, is_new = claim(directory, name, create=create and not read_only)
            directory = directory.absolute()  # for its files are written all the time, wherever the program is then
            watermark = Watermark(directory / name / WATERMARK_NAME, accept_loss=recover is not None)
        elif recover is not None:
            raise InvalidError(f"the {name} backend keeps no files to recover", remedy="leave recover out")
        if read_only and not plugins.backends.find(name).read_only:
            raise InvalidError(
                f"the {name} backend cannot be opened with read_only=True",
                remedy="open it without when no other process has it, or close it there, copy it, and open the copy",
            )
        options = BackendOptions(
            path=directory / name,
            dsn=storage.dsn or "",
            durability=storage.level,
            wal=storage.level != "none",
            compression="none" if storage.compression_scope == "value" else codec,
            cache_bytes=storage.cache_bytes,
            engine=storage.engine,
            may_open=None if watermark is None else may_open(watermark),
            read_only=read_only,
            create=create,
        )
        started_s = time.monotonic()
        backend = plugins.backends.create(name, options)
    except ProviderNotFoundError:
        # Its package is missing. A marker that names it would keep every other engine out.
        if is_new:
            unclaim(directory)
        raise
    except (OSError, UnicodeError) as error:
        raise directory_error(directory, error) from error
    if watermark is not None and isinstance(backend, SupportsSequence):
        try:
            sequence = backend.sequence()
            may_open(watermark)(sequence, backend.get, damaged=False)  # for an engine that did not ask
        except BaseException:
            backend.close()
            raise
        if watermark.expected is not None and sequence > watermark.expected and not read_only:
            log.info(
                "%s was not closed: %d operations behind the last one known to be durable were found, in %.0f ms",
                directory,
                sequence - watermark.expected,
                (time.monotonic() - started_s) * 1000,
            )
    return backend, None if read_only else watermark


def _backend_of(dsn: str, plugins: Plugins) -> str:
    """The engine that takes such a URL."""
    scheme = dsn.partition("://")[0]
    for name, provider in plugins.backends.providers.items():
        if scheme in provider.schemes:
            return name
    raise ProviderNotFoundError(
        f"no engine that is installed opens {scheme}:// URLs",
        remedy="pip install qilbee-postgres" if scheme in ("postgresql", "postgres") else "check the URL",
    )


def may_open(watermark: Watermark) -> MayOpen:
    """What an engine is to ask before it opens with what it has."""

    def allows(sequence: int, get: Callable[[bytes], bytes | None], *, damaged: bool) -> bool:
        return watermark.allows(sequence, partial(find_store_id, get), damaged=damaged)

    return allows


def value_codec(backend: StorageBackend, settings: Settings) -> str:
    """The codec for values: none where the engine compresses its blocks with what is asked for."""
    storage = settings.storage
    native = backend.native_codecs if isinstance(backend, SupportsNativeCompression) else frozenset()
    if storage.compression_scope == "value" or storage.codec == "none":
        return storage.codec
    if storage.codec in native:
        return "none"
    if storage.compression_scope == "block":
        raise SettingsError(
            f"the {backend.name} backend has no block compression {storage.codec!r}, it has "
            f"{', '.join(sorted(native)) or 'none'}",
            remedy='use compression_scope = "auto" or "value"',
        )
    return storage.codec
