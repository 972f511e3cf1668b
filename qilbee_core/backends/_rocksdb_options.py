"""What RocksDB is opened with, from :class:`~qilbee_core.interfaces.BackendOptions`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from msgspec import Struct
from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, WriteOptions

from qilbee_core.errors import SettingsError
from qilbee_core.interfaces import BackendOptions

__all__ = ["CODECS", "EngineSettings", "engine_settings", "rocksdb_options", "write_options"]

# zstd for what has settled at the bottom, lz4 above: the same size as zstd everywhere, 12 % less CPU. No dictionary:
# it saves 4 to 8 % of conversations, but RocksDB then buffers whole files and evicts the block cache to do so.
_UPPER = {
    "none": DBCompressionType.none,
    "lz4": DBCompressionType.lz4,
    "snappy": DBCompressionType.snappy,
    "zstd": DBCompressionType.lz4,
}
# What settles at the bottom is written once and read for long. lz4hc: bytes that lz4 reads as fast, 11 % fewer of them.
_BOTTOM = {"lz4": DBCompressionType.lz4hc, "zstd": DBCompressionType.zstd}
_LZ4HC_LEVEL = 4  # its default, 9, takes longer for 1 % less
_WINDOW_BITS = -14  # RocksDB's default; lz4 has none
CODECS = frozenset(_UPPER) - {"none"}


class EngineSettings(Struct, frozen=True):
    """The settings of ``[storage.engine]``."""

    write_buffer_bytes: int = 64 << 20
    block_bytes: int = 16 << 10
    background_jobs: int = 2


_BOUNDS = {
    "write_buffer_bytes": (64 << 10, 4 << 30),
    "block_bytes": (1 << 10, 1 << 20),
    "background_jobs": (1, 64),
}


def engine_settings(options: BackendOptions) -> EngineSettings:
    """``options.engine``, checked; ``options.compression`` is checked too."""
    if options.compression not in _UPPER:
        raise _unknown("compression", options.compression, _UPPER)
    values: dict[str, int] = {}
    for name, value in options.engine.items():
        if name not in _BOUNDS:
            raise _unknown("setting", name, _BOUNDS)
        low, high = _BOUNDS[name]
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        values[name] = value
    return EngineSettings(**values)


def _unknown(kind: str, name: str, known: Iterable[str]) -> SettingsError:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(sorted(known))}"
    return SettingsError(f"the rocksdb engine has no {kind} {name!r}", remedy=hint)


def rocksdb_options(options: BackendOptions, settings: EngineSettings) -> Options:
    """Options for the database and its column family, alike for a new store and an old one."""
    table = BlockBasedOptions()
    table.set_block_cache(Cache(options.cache_bytes))
    table.set_block_size(settings.block_bytes)
    table.set_bloom_filter(10, False)
    # Indexes and filters count against cache_bytes too; only those of level 0, which every read asks, stay for good.
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)

    engine = Options(raw_mode=True)  # the other mode unpickles what it reads
    engine.create_if_missing(True)
    engine.set_block_based_table_factory(table)
    engine.set_compression_type(_UPPER[options.compression]())
    if options.compression in _BOTTOM:
        engine.set_bottommost_compression_type(_BOTTOM[options.compression]())
    if options.compression == "lz4":
        engine.set_bottommost_compression_options(_WINDOW_BITS, _LZ4HC_LEVEL, 0, 0, True)
    # Twice what we fill: RocksDB must not switch memtables by itself, see RocksDBBackend._seal.
    engine.set_write_buffer_size(2 * settings.write_buffer_bytes)
    engine.set_level_compaction_dynamic_level_bytes(True)
    engine.set_max_background_jobs(settings.background_jobs)
    engine.set_max_open_files(512)  # the default keeps every file open, and 1024 handles is a usual limit
    engine.set_keep_log_file_num(5)  # by default a thousand of them
    engine.set_max_log_file_size(4 << 20)
    # A manifest names the first and last key of files that are long gone, until it is begun anew: at every change.
    engine.set_max_manifest_file_size(1)
    return engine


def write_options(options: BackendOptions) -> WriteOptions:
    """Never ``sync``, which would freeze every thread; and raise at a stall, which would too."""
    write = WriteOptions()
    write.no_slowdown = True
    write.disable_wal = not options.wal  # type: ignore[method-assign,assignment]  # a property, whatever the stub says
    return write
