"""Zstandard: the smallest, above all with a dictionary."""

from __future__ import annotations

import threading

from zstandard import (
    MAGIC_NUMBER,
    ZstdCompressionDict,
    ZstdCompressionParameters,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
    get_frame_parameters,
)

from qilbee_core.errors import CorruptRecordError

__all__ = ["ZstdCodec"]

_LEVEL = 3
# With a dictionary nearly all that repeats is found there, so it pays to look harder: chat turns of 200 bytes
# come to 46.6 % instead of 49.1 %, for 2 us each.
_DICTIONARY_LEVEL = 5
_DICTIONARY_SEARCH_LOG = 5

# Every frame begins with the same four bytes. A record of 300 bytes has better uses for them.
_MAGIC = MAGIC_NUMBER.to_bytes(4, "little")


class ZstdCodec:
    """One Zstandard frame without its magic number; its header declares the decoded length.

    The dictionary is not named in the frame either: whoever gave it keeps record of it (the envelope
    does). Nothing is encoded as nothing.

    >>> codec = ZstdCodec()
    >>> codec.decode(codec.encode(b"tea, " * 100), 500) == b"tea, " * 100
    True
    >>> short = b"Shall we have tea at the station?"
    >>> primed = codec.with_dictionary(b"See you at the station. Shall we have tea?")
    >>> len(primed.encode(short)) < len(codec.encode(short))
    True
    """

    name = "zstd"

    def __init__(self, dictionary: bytes | None = None) -> None:
        self._coders = _Coders(None if dictionary is None else _Dictionary(dictionary))

    def with_dictionary(self, dictionary: bytes) -> ZstdCodec:
        """A codec with ``dictionary`` on both ways, as trained by zstd or any bytes that are like the values."""
        return ZstdCodec(dictionary)

    def encode(self, data: bytes) -> bytes:
        """The frame of ``data``, without its magic number."""
        return self._coders.compress(data)[len(_MAGIC) :] if data else b""

    def decode(self, data: bytes, size: int) -> bytes:
        """The ``size`` bytes of one frame."""
        # zstandard looks no further than the header of an empty frame; whatever follows would pass.
        if not data or not size:
            if data or size:
                raise CorruptRecordError(f"the zstd frame has {len(data)} bytes, for a value of {size}")
            return b""
        frame = _MAGIC + data
        try:
            # zstandard allocates whatever length the frame declares, so it must declare ours.
            declared = get_frame_parameters(frame).content_size
            if declared != size:
                raise CorruptRecordError(f"the zstd frame declares {declared} bytes, not {size}")
            return self._coders.decompress(frame, allow_extra_data=False)
        except ZstdError as error:
            raise CorruptRecordError(f"not a zstd frame of {size} bytes: {error}") from error


class _Coders(threading.local):
    """The compressor and the decompressor of each thread: one shared by two threads gives wrong bytes."""

    def __init__(self, dictionary: _Dictionary | None) -> None:
        if dictionary is None:
            self.compress = ZstdCompressor(level=_LEVEL).compress
            self.decompress = ZstdDecompressor().decompress
        else:
            self.compress = ZstdCompressor(
                dict_data=dictionary.digested, compression_params=dictionary.parameters
            ).compress
            self.decompress = ZstdDecompressor(dict_data=dictionary.digested).decompress


class _Dictionary:
    """A dictionary whose tables are built once for all threads; they only read them."""

    def __init__(self, data: bytes) -> None:
        self.parameters = ZstdCompressionParameters.from_level(
            _DICTIONARY_LEVEL, dict_size=len(data), search_log=_DICTIONARY_SEARCH_LOG, write_dict_id=False
        )
        self.digested = ZstdCompressionDict(data)
        self.digested.precompute_compress(compression_params=self.parameters)
