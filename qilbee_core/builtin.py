"""What we provide ourselves, through the hooks that everybody uses.

Each module is imported when its provider is first asked for, so that a missing library hurts only
those who need it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from qilbee_core.hookspecs import hookimpl
from qilbee_core.interfaces import (
    BackendOptions,
    Codec,
    ConsolidationPolicy,
    Embedder,
    Provider,
    Serializer,
    StorageBackend,
)
from qilbee_core.options import read_options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__: list[str] = []


def _backend(module: str, name: str) -> Callable[[BackendOptions], StorageBackend]:
    def create(options: BackendOptions) -> StorageBackend:
        opened: StorageBackend = getattr(import_module(f"qilbee_core.backends.{module}"), name)(options)
        return opened

    return create


def _codec(module: str, name: str) -> Callable[[], Codec]:
    def create() -> Codec:
        codec: Codec = getattr(import_module(f"qilbee_core.codecs.{module}"), name)()
        return codec

    return create


def _serializer(module: str, name: str) -> Callable[[], Serializer]:
    def create() -> Serializer:
        serializer: Serializer = getattr(import_module(f"qilbee_core.serializers.{module}"), name)()
        return serializer

    return create


def _policy(name: str, policy: str, settings: str) -> Callable[..., ConsolidationPolicy]:
    def create(**given: object) -> ConsolidationPolicy:
        module = import_module(f"qilbee_core.policies.{name}")
        options = read_options(getattr(module, settings), f"policy {name!r}", given, page="docs/consolidation.md")
        created: ConsolidationPolicy = getattr(module, policy)(options)
        return created

    return create


def _static() -> Embedder:
    embedder: Embedder = import_module("qilbee_core.embedders.static").StaticEmbedder()
    return embedder


def _openai(**given: object) -> Embedder:
    module = import_module("qilbee_core.embedders.openai")
    options = read_options(module.OpenAISettings, "embedder 'openai'", given, page="docs/configuration.md")
    embedder: Embedder = module.OpenAIEmbedder(options)
    return embedder


@hookimpl
def qilbee_register_backends() -> Iterable[Provider[StorageBackend]]:
    """RocksDB, LevelDB, and the ephemeral reference."""
    return [
        Provider(
            "rocksdb",
            _backend("rocksdb", "RocksDBBackend"),
            "LSM tree, compressed blocks; the default",
            read_only=True,
        ),
        Provider(
            "leveldb",
            _backend("leveldb", "LevelDBBackend"),
            "LSM tree, small and simple",
            install="pip install 'qilbee-core[leveldb]'",
        ),
        Provider(
            "ephemeral",
            _backend("ephemeral", "EphemeralBackend"),
            "sorted, in RAM, gone when closed",
            directory=False,
        ),
    ]


@hookimpl
def qilbee_register_codecs() -> Iterable[Provider[Codec]]:
    """The four codecs of ``compression_type``."""
    return [
        Provider("none", _codec("none", "NoneCodec"), "bytes as they are"),
        Provider("lz4", _codec("lz4", "Lz4Codec"), "fast", install="pip install lz4"),
        Provider("snappy", _codec("snappy", "SnappyCodec"), "fast", install="pip install python-snappy"),
        Provider("zstd", _codec("zstd", "ZstdCodec"), "small", install="pip install zstandard"),
    ]


@hookimpl
def qilbee_register_serializers() -> Iterable[Provider[Serializer]]:
    """The compact one and the readable one."""
    return [
        Provider("msgpack", _serializer("msgpack", "MsgpackSerializer"), "compact; the default"),
        Provider("json", _serializer("json", "JsonSerializer"), "readable by anything"),
    ]


@hookimpl
def qilbee_register_embedders() -> Iterable[Provider[Embedder]]:
    """The table of words, and whatever speaks the protocol of OpenAI."""
    return [
        Provider("static", _static, "words by a table that is built in; the default"),
        Provider(
            "openai",
            _openai,
            "an endpoint of the OpenAI kind, over HTTP",
            install="pip install 'qilbee-core[llm]'",
        ),
    ]


@hookimpl
def qilbee_register_policies() -> Iterable[Provider[ConsolidationPolicy]]:
    """The policies of consolidation."""
    return [
        Provider(
            "duplicates",
            _policy("duplicates", "Duplicates", "DuplicateSettings"),
            "of memories that say the same, one stays",
        ),
        Provider("sessions", _policy("sessions", "Sessions", "SessionSettings"), "a summary of each finished session"),
        Provider(
            "llm",
            _policy("llm", "Llm", "LlmSettings"),
            "summaries and facts, written by a language model",
            install="pip install 'qilbee-core[llm]'",
        ),
    ]
