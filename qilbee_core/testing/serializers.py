"""The contract of a serializer as tests: subclass :class:`SerializerContract`, say how to open yours, run pytest.

::

    class TestLisp(SerializerContract):
        golden = ((b'("note" 1)', ["note", 1]),)

        def open_serializer(self) -> Serializer:
            return LispSerializer()
"""

# ruff: noqa: D102 - the name of a test is the sentence of the contract that it tests

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qilbee_core.errors import CorruptRecordError
from qilbee_core.interfaces import Document, Serializer

__all__ = ["SerializerContract", "documents"]

# Each subclass runs every test on itself, which is what a kit is for.
_quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.differing_executors])

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _text
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_text, inner, max_size=5), max_leaves=30
)


def documents() -> st.SearchStrategy[Document]:
    """Any document."""
    return st.lists(_values, max_size=9)


_EPISODE: Document = [
    "conversation",
    {"user_input": "Wo ist mein Päckchen? 📦", "agent_response": 'It is "on its way".\n'},
    1_763_800_000_000_000,
    {"session_id": "s-12", "score": 1.0, "tags": ["order", None, True], "nested": {"": [[], {}]}},
]


class SerializerContract:
    """What every serializer promises. ``open_serializer`` is called for each test, and must give a new one.

    ``golden`` holds pairs of (bytes, document) that some release wrote: they load for ever, so pairs are
    only ever added. ``hostile`` holds bytes made by hand that no document has and that must be refused:
    kinds of value that JSON has not, depth that overflows the stack, lengths that lie.
    """

    golden: ClassVar[tuple[tuple[bytes, Document], ...]] = ()
    hostile: ClassVar[tuple[bytes, ...]] = ()

    def open_serializer(self) -> Serializer:
        """A new serializer."""
        raise NotImplementedError(f"{type(self).__name__} has to say how its serializer is opened")

    def test_its_name_can_stand_in_a_configuration(self) -> None:
        name = self.open_serializer().name
        assert name
        assert all(character.isalnum() or character in "._-" for character in name)

    @_quick
    @given(document=documents())
    @example(document=[])
    @example(document=_EPISODE)
    def test_any_document_comes_back_equal(self, document: Document) -> None:
        serializer = self.open_serializer()
        data = serializer.dumps(document)
        assert type(data) is bytes
        assert _exact(serializer.loads(data)) == _exact(document)

    @pytest.mark.parametrize("number", [0, 1, -1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
    def test_integers_of_64_bits_come_back(self, number: int) -> None:
        self._comes_back([number])

    @pytest.mark.parametrize("number", [0.0, -0.0, 1.0, -3.0, 0.1, 1e15, 1e16, 2.0**53, 2.0**63, 5e-324, 1.7e308])
    def test_floats_come_back_as_floats_to_the_last_bit(self, number: float) -> None:
        self._comes_back([number, {"number": number}])

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    def test_numbers_that_are_not_finite_are_refused_or_come_back(self, number: float) -> None:
        """The store asks for none, and never for something else in their place."""
        serializer = self.open_serializer()
        try:
            data = serializer.dumps([number, "null"])
        except ValueError:
            return
        assert _exact(serializer.loads(data)) == _exact([number, "null"])

    @pytest.mark.parametrize("text", ["", "\0", "\x7f\x80", "ä", "\ud7ff\ue000", "\uffff", "\U0010ffff", "</\"\\'\n"])
    def test_text_of_any_kind_comes_back(self, text: str) -> None:
        self._comes_back([text, {text: text}])

    @pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
    def test_lone_surrogates_are_refused(self, text: str) -> None:
        serializer = self.open_serializer()
        for document in ([text], [{text: 1}]):
            with pytest.raises(UnicodeEncodeError):
                serializer.dumps(cast("Document", document))

    @pytest.mark.parametrize("depth", [1, 5, 6, 7, 8, 32, 100])
    def test_documents_nested_to_any_useful_depth_come_back(self, depth: int) -> None:
        document: Document = ["core"]
        for level in range(depth):
            document = [{"in": document}, level] if level % 2 else [document]
        self._comes_back(document)

    def test_large_text_comes_back(self) -> None:
        self._comes_back(["x" * (1 << 20), {"y": "ä" * 70_000}])

    def test_many_values_come_back(self) -> None:
        self._comes_back([list(range(70_000)), {str(number): number for number in range(70_000)}])

    def test_one_instance_loads_what_another_dumped(self) -> None:
        assert self.open_serializer().loads(self.open_serializer().dumps(_EPISODE)) == _EPISODE

    def test_what_a_release_wrote_loads_for_ever(self) -> None:
        serializer = self.open_serializer()
        for data, document in self.golden:
            assert _exact(serializer.loads(data)) == _exact(document)

    def test_bytes_cut_short_anywhere_are_refused(self) -> None:
        serializer = self.open_serializer()
        data = serializer.dumps(_EPISODE)
        for length in range(len(data)):
            with pytest.raises(CorruptRecordError):
                serializer.loads(data[:length])

    @pytest.mark.parametrize("document", [[], ["a"], _EPISODE], ids=len)
    def test_bytes_after_the_end_are_refused(self, document: Document) -> None:
        serializer = self.open_serializer()
        data = serializer.dumps(document)
        for more in (b"\0", b"\xff", b"x", data):
            with pytest.raises(CorruptRecordError):
                serializer.loads(data + more)

    @pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", {}, {"a": []}], ids=repr)
    def test_a_value_that_is_no_list_is_refused(self, value: object) -> None:
        serializer = self.open_serializer()
        try:
            data = serializer.dumps(cast("Any", value))
        except Exception:  # what is no document need not be dumped
            return
        with pytest.raises(CorruptRecordError):
            serializer.loads(data)

    def test_a_flipped_bit_is_refused_or_gives_a_document(self) -> None:
        """Which it is, the checksum of the envelope sees to."""
        serializer = self.open_serializer()
        data = serializer.dumps(_EPISODE)
        for at in range(len(data)):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[at] ^= 1 << bit
                _refused_or_document(serializer, bytes(flipped))

    @_quick
    @given(data=st.binary(max_size=200))
    def test_any_bytes_at_all_are_refused_or_give_a_document(self, data: bytes) -> None:
        _refused_or_document(self.open_serializer(), data)

    def test_hostile_bytes_are_refused(self) -> None:
        serializer = self.open_serializer()
        for data in self.hostile:
            with pytest.raises(CorruptRecordError):
                serializer.loads(data)

    def test_eight_threads_share_one_serializer(self) -> None:
        serializer = self.open_serializer()

        def dump_and_load(thread: int) -> None:
            for number in range(300):
                document = [*_EPISODE, thread, number]
                assert serializer.loads(serializer.dumps(document)) == document

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(dump_and_load, range(8)))

    def _comes_back(self, document: Document) -> None:
        serializer = self.open_serializer()
        assert _exact(serializer.loads(serializer.dumps(document))) == _exact(document)


def _refused_or_document(serializer: Serializer, data: bytes) -> None:
    try:
        document = serializer.loads(data)
    except CorruptRecordError:
        return
    assert type(document) is list
    _exact(document)


def _exact(value: object) -> object:
    """``value`` with its types spelt out, so that 1, 1.0 and True differ, and 0.0 and -0.0; only JSON's kinds pass."""
    if type(value) is list:
        return [_exact(inner) for inner in value]
    if type(value) is dict:
        assert all(type(key) is str for key in value)
        return {key: _exact(inner) for key, inner in value.items()}
    assert value is None or type(value) in (bool, int, float, str)
    return type(value).__name__, repr(value)
