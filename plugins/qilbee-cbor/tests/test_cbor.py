"""The serializer keeps the contract of every serializer."""

from qilbee_cbor import CborSerializer

from qilbee_core import Serializer, load_plugins
from qilbee_core.testing import SerializerContract


class TestCbor(SerializerContract):
    golden = (
        (b"\x80", []),
        (
            b"\x84dnote\xa2dtextbhian\x84\xf6\xf5\xf4\x20\x1b\x00\x06D*\xb0tp\x00\xa0",
            ["note", {"text": "hi", "n": [None, True, False, -1]}, 1_763_800_000_000_000, {}],
        ),
        # what other encoders may write: short floats, strings in pieces, lists without a length
        (b"\x83\xf9\x3c\x00\xfa\x3f\x80\x00\x00\x7faaabac\xff", [1.0, 1.0, "abc"]),
        (b"\x9f\x01\xbfak\x02\xff\xff", [1, {"k": 2}]),
        (b"\x82\x3b\x7f" + b"\xff" * 7 + b"\x1b" + b"\xff" * 8, [-(2**63), 2**64 - 1]),
    )
    hostile = (
        b"",
        b"\xa0",
        b"\xf6",
        b"\x81\xf7",  # undefined
        b"\x81\xf0",  # a simple value
        b"\x81\xff",  # an end without a beginning
        b"\x81\x41x",  # bytes
        b"\x81\xa1\x01\x02",  # keys that are not text
        b"\x81\xa1\x80\x02",
        b"\x81\xa1\x41k\x02",
        b"\x81\xc0\x74" + b"2026-01-01T00:00:00Z",  # times
        b"\x81\xc1\x01",
        b"\x81\xc2\x49\x01" + bytes(8),  # integers beyond 64 bits
        b"\x81\x3b\x80" + bytes(7),
        b"\x81\x3b" + b"\xff" * 8,
        b"\x81\xd9\x01\x02\x81\x01",  # a set
        b"\x81\xd8\x23\x61a",  # a regular expression
        b"\xd8\x1c\x81\xd8\x1d\x00",  # a list that is its own element
        b"\x81\xd8\x1c\x81\xd8\x1d\x00",
        b"\xd9\xd9\xf7\x80",
        b"\x81\x61\xff",  # not UTF-8
        b"\x81\x63\xed\xa0\x80",  # a lone surrogate
        b"\x9b" + b"\xff" * 8,  # lengths that lie
        b"\xbb" + b"\xff" * 8,
        b"\x81\x7b\x7f" + b"\xff" * 7,
        b"\x81" * 200_000 + b"\x00",
        b"\x9f" * 200_000,
    )

    def open_serializer(self) -> Serializer:
        return CborSerializer()


def test_it_is_found_by_name() -> None:
    plugins = load_plugins()
    assert plugins.serializers.create("cbor").name == "cbor"
    assert plugins.serializers.distributions["cbor"] == "qilbee-cbor"
