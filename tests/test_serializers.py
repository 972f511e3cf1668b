"""Our serializers keep the contract."""

import math

import pytest

from qilbee_core import CorruptRecordError, Document, Serializer, load_plugins
from qilbee_core.serializers.json import JsonSerializer
from qilbee_core.serializers.msgpack import MsgpackSerializer
from qilbee_core.testing import SerializerContract

EVERYTHING: Document = [
    "observation",
    {"observation": "Ana: hi", "n": [None, True, False, -1, 255, 2**64 - 1, -(2**63), 1.0, -0.0]},
    1_763_800_000_000_000,
    {},
]


class TestMsgpack(SerializerContract):
    golden = (
        (b"\x90", []),
        (
            b"\x94\xabobservation\x82\xabobservation\xa7Ana: hi\xa1n\x99\xc0\xc3\xc2\xff\xcc\xff\xcf"
            + b"\xff" * 8
            + b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00\xcb?\xf0\x00\x00\x00\x00\x00\x00"
            b"\xcb\x80\x00\x00\x00\x00\x00\x00\x00\xcf\x00\x06D*\xb0tp\x00\x80",
            EVERYTHING,
        ),
        # what other encoders may write: longer forms than needed, floats of 32 bits
        (b"\xdc\x00\x02\xd9\x01a\xcd\x00\x01", ["a", 1]),
        (b"\x92\xca\x3f\x80\x00\x00\xdf\x00\x00\x00\x01\xa1k\xd0\x05", [1.0, {"k": 5}]),
    )
    hostile = (
        b"",
        b"\x80",
        b"\xc0",
        b"\x91\xc1",  # never used
        b"\x91\xc4\x01x",  # bytes
        b"\x91\x91\x81\xa1k\xc4\x01x",
        b"\x91\xc7\x01\x05x",  # extensions
        b"\x91\xd4\x05x",
        b"\x91\xd6\xff\x00\x00\x00\x01",  # a time
        b"\x91\x81\x01\x02",  # keys that are not text
        b"\x91\x81\xc0\x02",
        b"\x91\x81\xc4\x01k\x02",
        b"\x91\x81\x90\x02",
        b"\x91\x81\x91\x80\x02",
        b"\x91" * 20 + b"\xc4\x01x",  # the same deep down
        b"\x91" * 20 + b"\x81\x01\x02",
        b"\x91" * 20 + b"\xd6\xff\x00\x00\x00\x01",
        b"\x91\xa1\xff",  # not UTF-8
        b"\x91\xa3\xed\xa0\x80",  # a lone surrogate
        b"\xdd\xff\xff\xff\xff",  # lengths that lie
        b"\xdf\xff\xff\xff\xff",
        b"\x91\xdb\xff\xff\xff\xff",
        b"\x91" * 200_000 + b"\xc0",
    )

    def open_serializer(self) -> Serializer:
        return MsgpackSerializer()


class TestJson(SerializerContract):
    golden = (
        (b"[]", []),
        (
            (
                b'["observation",{"observation":"Ana: hi","n":[null,true,false,-1,255,18446744073709551615,'
                b"-9223372036854775808,1.0,-0.0]},1763800000000000,{}]"
            ),
            EVERYTHING,
        ),
        # what other encoders may write
        (b' [ "\\u00e4\\ud83d\\ude00" ,\n1E2, {"a": 1, "a": 2} ] ', ["ä😀", 100.0, {"a": 2}]),
    )
    hostile = (
        b"",
        b"{}",
        b"null",
        b"[NaN]",
        b"[Infinity]",
        b"[1e999]",
        b"[01]",
        b"[" + b"9" * 5000 + b"]",
        b'["\\ud800"]',  # lone surrogates
        b'["\\udc00\\ud800"]',
        b'["\xed\xa0\x80"]',
        b'["\xff"]',
        b'["a\nb"]',
        b"['a']",
        b"[1,]",
        b"\xef\xbb\xbf[]",
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
    )

    def open_serializer(self) -> Serializer:
        return JsonSerializer()


@pytest.mark.parametrize("name", ["msgpack", "json"])
def test_the_registry_gives_each_serializer_by_its_name(name: str) -> None:
    assert load_plugins().serializers.create(name).name == name


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_it_would_write_as_null(number: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        JsonSerializer().dumps(["x", {"y": [number, None]}])


def test_an_error_says_what_was_found() -> None:
    with pytest.raises(CorruptRecordError, match="MessagePack with a bytes"):
        MsgpackSerializer().loads(b"\x91\xc4\x01x")
    with pytest.raises(CorruptRecordError, match=r"JSON: .*trailing"):
        JsonSerializer().loads(b"[]x")
