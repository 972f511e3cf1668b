"""Between documents and sealed bytes: serializer, codec and envelope, as the settings say."""

from __future__ import annotations

from zlib import crc32

from qilbee_core.catalog import Catalog
from qilbee_core.codecs.dictionaries import dictionary, shipped_dictionary
from qilbee_core.envelope import RECORD_BYTES_MAX, Envelope, header, seal, unseal, varint
from qilbee_core.errors import CorruptRecordError, InvalidError
from qilbee_core.interfaces import Codec, Document, Serializer, SupportsDictionary
from qilbee_core.plugins import Plugins

__all__ = ["Records"]

_NO_CODEC = 0
"""The tag of bytes as they are: of every store, in no catalog."""
_RAW_HEADERS = 4096
"""Headers of uncompressed records that are made beforehand: those of fewer bytes than this."""


class Records:
    """Seals with one codec and one serializer; opens what any known ones have sealed."""

    def __init__(self, catalog: Catalog, plugins: Plugins, *, codec_name: str, serializer_name: str) -> None:
        self._catalog = catalog
        self._plugins = plugins
        self._codecs: dict[tuple[int, int], Codec] = {}
        self._serializers: dict[int, Serializer] = {}
        serializer = plugins.serializers.create(serializer_name)
        self._serializer_tag = catalog.tag_of(
            "serializer", serializer_name, plugins.serializers.distributions[serializer_name]
        )
        self._serializers[self._serializer_tag] = serializer
        self.encode = serializer.dumps
        """The bytes of a document, for seal_encoded()."""
        start = header(Envelope(_NO_CODEC, 0, self._serializer_tag, 0, b""))[:-1]
        self._raw_headers = [start + varint(raw_bytes) for raw_bytes in range(_RAW_HEADERS)]
        self._codec: Codec | None = None
        self._codec_tag = self._dictionary_id = 0
        if codec_name != "none":
            self._use_codec(codec_name)

    def _use_codec(self, name: str) -> None:
        codec = self._plugins.codecs.create(name)
        self._codec_tag = self._catalog.tag_of("codec", name, self._plugins.codecs.distributions[name])
        shipped = shipped_dictionary(name)
        if shipped is not None and isinstance(codec, SupportsDictionary):
            self._dictionary_id, data = shipped
            codec = codec.with_dictionary(data)
        self._codec = self._codecs[self._codec_tag, self._dictionary_id] = codec

    def seal(self, key: bytes, document: Document) -> bytes:
        """The bytes to store under ``key``; InvalidError where there are too many."""
        return self.seal_encoded(key, self.encode(document))

    def seal_encoded(self, key: bytes, body: bytes) -> bytes:
        """The same for a document that is encoded already."""
        raw_bytes = len(body)
        if self._codec is None and raw_bytes < _RAW_HEADERS:
            # envelope.seal() for an uncompressed body of the usual size, which is on the path of every store.
            sealed = self._raw_headers[raw_bytes] + body
            return sealed + crc32(sealed, crc32(key)).to_bytes(4, "big")
        if raw_bytes > RECORD_BYTES_MAX:
            raise InvalidError(
                f"the record takes {raw_bytes} bytes, the most is {RECORD_BYTES_MAX}", remedy="store it in parts"
            )
        return self._seal(key, body, self._serializer_tag)

    def _seal(self, key: bytes, body: bytes, serializer_tag: int) -> bytes:
        raw_bytes = len(body)
        if self._codec is not None:
            encoded = self._codec.encode(body)
            if len(encoded) < raw_bytes:
                return seal(key, Envelope(self._codec_tag, self._dictionary_id, serializer_tag, raw_bytes, encoded))
        return seal(key, Envelope(_NO_CODEC, 0, serializer_tag, raw_bytes, body))

    def reseal(self, key: bytes, value: bytes) -> bytes:
        """What was sealed under ``key``, by whichever codec, as it is sealed here; errors as of :meth:`open`."""
        serializer_tag, body = self.body(key, value)
        return self._seal(key, body, serializer_tag)

    def open(self, key: bytes, value: bytes) -> Document:
        """The document sealed under ``key``.

        CorruptRecordError where the bytes are not what was written, ProviderNotFoundError where the
        codec or serializer that wrote them is not installed.
        """
        serializer_tag, body = self.body(key, value)
        serializer = self._serializers.get(serializer_tag) or self._find_serializer(serializer_tag)
        return serializer.loads(body)

    def body(self, key: bytes, value: bytes) -> tuple[int, bytes]:
        """The tag of the serializer of what was sealed under ``key``, and what it made; errors as of :meth:`open`."""
        codec_tag, dictionary_id, serializer_tag, raw_bytes, body = unseal(key, value)
        if codec_tag != _NO_CODEC:
            codec = self._codecs.get((codec_tag, dictionary_id)) or self._find_codec(codec_tag, dictionary_id)
            body = codec.decode(body, raw_bytes)
        if len(body) != raw_bytes:
            raise CorruptRecordError(f"record {key.hex()} has {len(body)} bytes, its envelope says {raw_bytes}")
        return serializer_tag, body

    def _find_codec(self, tag: int, dictionary_id: int) -> Codec:
        known = self._catalog.codec(tag)
        codec = self._plugins.codecs.create(known.name, distribution=known.distribution)
        if dictionary_id:
            if not isinstance(codec, SupportsDictionary):
                raise CorruptRecordError(f"codec {known.name!r} takes no dictionary, a record names {dictionary_id}")
            codec = codec.with_dictionary(dictionary(known.name, dictionary_id))
        self._codecs[tag, dictionary_id] = codec
        return codec

    def _find_serializer(self, tag: int) -> Serializer:
        known = self._catalog.serializer(tag)
        serializer = self._plugins.serializers.create(known.name, distribution=known.distribution)
        self._serializers[tag] = serializer
        return serializer
