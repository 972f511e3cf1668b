"""The frames around stored values notice every damage before anybody acts on what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qilbee_core import CorruptRecordError, DataError, FormatVersionError
from qilbee_core.envelope import RECORD_BYTES_MAX, Envelope, frame, header, seal, unframe, unseal, varint
from qilbee_core.keys import AgentKeys

KEY = AgentKeys("bot").episode(bytes(range(16)))
ENVELOPES = [
    Envelope(0, 0, 1, 0, b""),
    Envelope(0, 0, 1, 5, b"hello"),
    Envelope(3, 1, 1, 300, b"\x00\xff" * 60),
    Envelope(255, 300, 255, RECORD_BYTES_MAX, bytes(range(256))),
]


def flips(data: bytes) -> Iterator[bytes]:
    """``data`` with each of its bits flipped in turn."""
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


envelopes = st.builds(
    Envelope,
    st.integers(0, 255),
    st.integers(0, 1 << 40),
    st.integers(0, 255),
    st.integers(0, RECORD_BYTES_MAX),
    st.binary(max_size=400),
)


@given(st.binary(max_size=300), envelopes)
def test_what_is_sealed_is_unsealed(key: bytes, envelope: Envelope) -> None:
    assert unseal(key, seal(key, envelope)) == envelope


@pytest.mark.parametrize("raw_bytes", [0, 127, 128, 16_383, 16_384, RECORD_BYTES_MAX])
@pytest.mark.parametrize("dictionary_id", [0, 127, 128, 1 << 31])
def test_numbers_of_any_width_come_back(raw_bytes: int, dictionary_id: int) -> None:
    envelope = Envelope(1, dictionary_id, 2, raw_bytes, b"body")
    assert unseal(KEY, seal(KEY, envelope)) == envelope


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: f"{len(envelope.body)} bytes")
def test_every_flipped_bit_of_a_record_is_noticed(envelope: Envelope) -> None:
    value = seal(KEY, envelope)
    for flipped in flips(value):
        with pytest.raises(CorruptRecordError):
            unseal(KEY, flipped)


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: f"{len(envelope.body)} bytes")
def test_every_flipped_bit_of_a_key_is_noticed(envelope: Envelope) -> None:
    value = seal(KEY, envelope)
    for flipped in flips(KEY):
        with pytest.raises(CorruptRecordError):
            unseal(flipped, value)


@pytest.mark.parametrize("envelope", ENVELOPES, ids=lambda envelope: f"{len(envelope.body)} bytes")
def test_a_record_that_was_cut_short_or_grew_is_noticed(envelope: Envelope) -> None:
    value = seal(KEY, envelope)
    for length in range(len(value)):
        with pytest.raises(CorruptRecordError):
            unseal(KEY, value[:length])
    for byte in range(256):
        with pytest.raises(CorruptRecordError):
            unseal(KEY, value + bytes((byte,)))


def test_a_good_record_under_another_key_is_noticed() -> None:
    keys = AgentKeys("bot")
    sealed = {key: seal(key, ENVELOPES[1]) for key in (keys.episode(bytes((n,)) * 16) for n in range(100))}
    for key in sealed:
        for other, value in sealed.items():
            if other != key:
                with pytest.raises(CorruptRecordError, match="checksum"):
                    unseal(key, value)


def test_a_version_of_a_record_is_the_same_bytes_under_another_agent_and_yet_noticed() -> None:
    here, there = AgentKeys("a").episode(bytes(16)), AgentKeys("b").episode(bytes(16))
    with pytest.raises(CorruptRecordError):
        unseal(there, seal(here, ENVELOPES[1]))


@pytest.mark.parametrize("version", [2, 3, 255])
def test_a_whole_record_of_a_newer_version_names_its_version(version: int) -> None:
    value = frame(KEY, bytes((version,)) + b"whatever comes then")
    with pytest.raises(FormatVersionError, match=f"envelope version {version}, this release reads 1"):
        unseal(KEY, value)
    for flipped in flips(value):
        with pytest.raises(CorruptRecordError):
            unseal(KEY, flipped)


def test_a_record_of_version_zero_is_corrupt() -> None:
    with pytest.raises(CorruptRecordError, match="version 0"):
        unseal(KEY, frame(KEY, b"\x00" + header(ENVELOPES[1])[1:] + b"hello"))


def test_a_raw_size_above_the_bound_is_refused() -> None:
    assert unseal(KEY, seal(KEY, Envelope(1, 0, 1, RECORD_BYTES_MAX, b"few")))[3] == RECORD_BYTES_MAX
    for raw_bytes in (RECORD_BYTES_MAX + 1, 1 << 40):
        with pytest.raises(CorruptRecordError, match=str(raw_bytes)):
            unseal(KEY, seal(KEY, Envelope(1, 0, 1, raw_bytes, b"few")))


@pytest.mark.parametrize(
    "payload", [b"\x01\x00\x80\x80\x80\x80\x80", b"\x01\x00\x00\x01\x80\x80", b"\x01\x00\x00\x01\xff\xff\xff\xff\xff"]
)
def test_a_header_that_never_ends_is_corrupt(payload: bytes) -> None:
    with pytest.raises(CorruptRecordError, match=r"header|claims"):
        unseal(KEY, frame(KEY, payload))


def test_nothing_that_is_thrown_at_a_record_raises_anything_but_a_data_error() -> None:
    dice = Random(7)
    for _ in range(10_000):
        value = dice.randbytes(dice.randrange(40))
        with pytest.raises(DataError):
            unseal(KEY, value)
        framed = frame(KEY, value)
        try:
            unseal(KEY, framed)
        except DataError:
            continue
        assert framed[0] == 1


@given(st.integers(0, 1 << 63))
def test_a_varint_takes_a_byte_for_seven_bits(number: int) -> None:
    encoded = varint(number)
    assert len(encoded) == max(1, -(-number.bit_length() // 7))
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert sum((byte & 0x7F) << 7 * at for at, byte in enumerate(encoded)) == number


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_what_is_framed_is_unframed_and_every_flip_is_noticed(key: bytes, payload: bytes) -> None:
    value = frame(key, payload)
    assert unframe(key, value) == payload
    for flipped in flips(value):
        with pytest.raises(CorruptRecordError):
            unframe(key, flipped)
    for length in range(len(value)):
        with pytest.raises(CorruptRecordError):
            unframe(key, value[:length])
