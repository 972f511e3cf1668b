"""The contract of a codec as tests: subclass :class:`CodecContract`, say how to open yours, run pytest.

::

    class TestReverse(CodecContract):
        golden = ((b"drawer", b"reward"),)

        def open_codec(self) -> Codec:
            return ReverseCodec()
"""

# ruff: noqa: D102 - the name of a test is the sentence of the contract that it tests

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Codec, SupportsDictionary

__all__ = ["CodecContract"]

_TEXT = b"The quick brown fox, she said, was neither quick nor brown; it was late, and the fox was late too. "
_BOMB_BYTES = 64 << 20
_SLACK_BYTES = 16 << 20  # what a decoder may take for itself
_THREADS = 8

# Each subclass runs every test on itself, which is what a kit is for.
_quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.differing_executors])

_values = st.one_of(
    st.binary(max_size=2000),
    st.text(max_size=500).map(str.encode),
    st.builds(lambda piece, times: piece * times, st.binary(min_size=1, max_size=20), st.integers(1, 500)),
)


class CodecContract:
    """What every codec promises. ``open_codec`` is called for each test, and must give a new one.

    ``golden`` holds pairs of (encoded, decoded) that some release wrote: they decode for ever, so pairs
    are only ever added. ``hostile`` holds pairs of (encoded, size) made by hand, that look right and must
    be refused: above all bombs whose header lies.
    """

    golden: ClassVar[tuple[tuple[bytes, bytes], ...]] = ()
    hostile: ClassVar[tuple[tuple[bytes, int], ...]] = ()

    def open_codec(self) -> Codec:
        """A new codec."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its codec is opened")

    def test_its_name_can_stand_in_a_configuration(self) -> None:
        name = self.open_codec().name
        assert name
        assert all(character.isalnum() or character in "._-" for character in name)

    @_quick
    @given(data=_values)
    @example(data=b"")
    @example(data=b"\0")
    def test_any_bytes_come_back(self, data: bytes) -> None:
        codec = self.open_codec()
        decoded = codec.decode(codec.encode(data), len(data))
        assert decoded == data
        assert type(decoded) is bytes

    @pytest.mark.parametrize("size", [1, 127, 128, 255, 256, 16_383, 16_384, 65_535, 65_536, 131_073, 3_000_000])
    def test_bytes_of_any_length_come_back(self, size: int) -> None:
        codec = self.open_codec()
        for data in (random.Random(size).randbytes(size), (_TEXT * (size // len(_TEXT) + 1))[:size], bytes(size)):
            assert codec.decode(codec.encode(data), size) == data

    def test_one_instance_decodes_what_another_encoded(self) -> None:
        assert self.open_codec().decode(self.open_codec().encode(_TEXT), len(_TEXT)) == _TEXT

    def test_what_a_release_wrote_decodes_for_ever(self) -> None:
        codec = self.open_codec()
        for encoded, decoded in self.golden:
            assert codec.decode(encoded, len(decoded)) == decoded

    @pytest.mark.parametrize("data", [b"", b"a", _TEXT, _TEXT * 40, bytes(5000)], ids=len)
    def test_another_size_is_refused(self, data: bytes) -> None:
        codec = self.open_codec()
        encoded = codec.encode(data)
        for size in {0, 1, len(data) // 2, len(data) - 1, len(data) + 1, len(data) * 2, len(data) + 100_000}:
            if size >= 0 and size != len(data):
                with pytest.raises(CorruptRecordError):
                    codec.decode(encoded, size)

    @pytest.mark.parametrize("data", [b"a", _TEXT, _TEXT * 10, bytes(5000)], ids=len)
    def test_bytes_cut_short_anywhere_are_refused(self, data: bytes) -> None:
        codec = self.open_codec()
        encoded = codec.encode(data)
        for length in range(len(encoded)):
            with pytest.raises(CorruptRecordError):
                codec.decode(encoded[:length], len(data))

    @pytest.mark.parametrize("data", [b"", b"a", _TEXT, bytes(5000)], ids=len)
    def test_bytes_after_the_end_are_refused(self, data: bytes) -> None:
        codec = self.open_codec()
        encoded = codec.encode(data)
        for more in (b"\0", b"\xff", b"more", codec.encode(_TEXT)):
            with pytest.raises(CorruptRecordError):
                codec.decode(encoded + more, len(data))

    @pytest.mark.parametrize("data", [b"a", _TEXT, bytes(5000)], ids=len)
    def test_a_flipped_bit_is_refused_or_gives_the_right_length(self, data: bytes) -> None:
        """Which it is, the checksum of the envelope sees to."""
        codec = self.open_codec()
        encoded = codec.encode(data)
        for at in range(len(encoded)):
            for bit in range(8):
                flipped = bytearray(encoded)
                flipped[at] ^= 1 << bit
                _refused_or_right_length(codec, bytes(flipped), len(data))

    @_quick
    @given(data=st.binary(max_size=200), size=st.integers(0, 10_000))
    def test_any_bytes_at_all_are_refused_or_give_the_right_length(self, data: bytes, size: int) -> None:
        _refused_or_right_length(self.open_codec(), data, size)

    def test_a_bomb_is_refused_before_it_goes_off(self) -> None:
        codec = self.open_codec()
        encoded = codec.encode(bytes(_BOMB_BYTES))
        for size in (0, 1, 1024, 1 << 20):
            _refuses_cheaply(codec, encoded, size)

    def test_hostile_bytes_are_refused_cheaply(self) -> None:
        codec = self.open_codec()
        for encoded, size in self.hostile:
            _refuses_cheaply(codec, encoded, size)

    def test_eight_threads_share_one_codec(self) -> None:
        _hammer(self.open_codec())

    def test_a_dictionary_serves_both_ways(self) -> None:
        plain = self.open_codec()
        if not isinstance(plain, SupportsDictionary):
            pytest.skip("takes no dictionary")
        codec = plain.with_dictionary(_TEXT)
        assert codec.name == plain.name
        data = _TEXT[30:80]
        encoded = codec.encode(data)
        assert len(encoded) < len(plain.encode(data))
        assert plain.with_dictionary(_TEXT).decode(encoded, len(data)) == data
        assert plain.decode(plain.encode(data), len(data)) == data
        _hammer(codec)


def _refused_or_right_length(codec: Codec, encoded: bytes, size: int) -> None:
    try:
        decoded = codec.decode(encoded, size)
    except CorruptRecordError:
        return
    assert len(decoded) == size


def _refuses_cheaply(codec: Codec, encoded: bytes, size: int) -> None:
    def refuse() -> None:
        with pytest.raises(CorruptRecordError):
            codec.decode(encoded, size)

    assert _peak_bytes(refuse) < size + _SLACK_BYTES


def _peak_bytes(action: Callable[[], None]) -> int:
    """By how much the process grew at most while ``action`` ran. Decoders allocate behind Python's back."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("only Linux tells the peak of a process")
    before = _high_water_bytes()
    action()
    return _high_water_bytes() - before


def _high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _hammer(codec: Codec) -> None:
    """Encode and decode on all threads at once, each with values of its own."""
    start = Barrier(_THREADS)

    def encode_and_decode(seed: int) -> None:
        draw = random.Random(seed)
        values = [bytes(draw.choices(_TEXT, k=draw.randrange(1, 5000))) for _ in range(10)]
        start.wait()
        for _ in range(20):
            for data in values:
                assert codec.decode(codec.encode(data), len(data)) == data

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(encode_and_decode, range(_THREADS)))
    finally:
        sys.setswitchinterval(interval)
