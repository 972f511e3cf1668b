"""The bounds of everything a caller may hand in: refused with InvalidError, before anything is stored."""

from __future__ import annotations

import asyncio
import enum
import random
import signal
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from types import FrameType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qilbee_core import AgentMemory, AsyncAgentMemory, Episode, InvalidError, QilbeeError, Store, aopen_store, limits
from qilbee_core.keys import AGENT_ID_BYTES_MAX

OpenHere = Callable[..., Store]

AGENT = "bot"
KNOWN = Episode(AGENT, "note", {"text": "known"}, id="0d4a8e0d-6c00-8000-8000-000000000000")


def nested(containers: int, kind: type[list[Any]] | type[dict[str, Any]] = list) -> Any:
    """A number in that many containers, one in another."""
    value: Any = 1
    for _ in range(containers):
        value = [value] if kind is list else {"k": value}
    return value


class Sizes(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


# Tests are told of their names only: nobody can show all of them.
VALUES: dict[str, Any] = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "7": 7,
    "1e308": 1e308,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "an integer of 5,000 digits": 10**4999,
    "text": "text",
    "a subclass of str": Text("text"),
    "no text": "",
    "a lone surrogate": "\ud800",
    "bytes": b"text",
    "a list": [1],
    "an object": {"text": 1},
    "a tuple": ("text",),
    "a set": {"text"},
    "nested 1,000 deep": nested(1_000),
    "nested 200,000 deep": nested(200_000),
    "a datetime": datetime(2024, 1, 1, tzinfo=UTC),
    "a date": date(2024, 1, 1),
    "a Decimal": Decimal(1),
    "a Fraction": Fraction(1),
    "a complex": complex(1),
    "a function": len,
    "a class": Episode,
    "an episode": KNOWN,
}


def all_but(*allowed: str) -> list[str]:
    assert set(allowed) <= set(VALUES)
    return [name for name in VALUES if name not in allowed]


BOOL = all_but("True")
ID = all_but()
ID_OR_NONE = all_but("None")
MOMENT = all_but("None", "a datetime")
OBJECT = all_but("None", "an object")
TEXT_OR_NONE = all_but("None", "text")
MANY = all_but("no text")  # an iterable of no episodes

# verb and argument -> the values that are wrong for it, and the call
ARGUMENTS: dict[str, tuple[list[str], Callable[[Any, Any], Any]]] = {
    "store_episode(episode)": (all_but("an episode"), lambda memory, v: memory.store_episode(v)),
    "store_episode(idempotency_key)": (
        TEXT_OR_NONE,
        lambda memory, v: memory.store_episode(KNOWN, idempotency_key=v),
    ),
    "store_episodes(episodes)": (MANY, lambda memory, v: memory.store_episodes(v)),
    "import_episodes(episodes)": (MANY, lambda memory, v: memory.import_episodes(v)),
    "import_episodes(progress)": (
        all_but("None", "a function", "a class"),
        lambda memory, v: memory.import_episodes([KNOWN], progress=v),
    ),
    "get_episode(id)": (ID, lambda memory, v: memory.get_episode(v)),
    "get_episodes(ids)": (all_but("no text"), lambda memory, v: memory.get_episodes(v)),
    "get_episodes([id])": (ID, lambda memory, v: memory.get_episodes([v])),
    "get_recent_episodes(limit)": (all_but("7"), lambda memory, v: memory.get_recent_episodes(v)),
    "get_recent_episodes(before)": (ID_OR_NONE, lambda memory, v: memory.get_recent_episodes(before=v)),
    "get_recent_episodes(episode_type)": (
        all_but("None", "text", "no text", "a lone surrogate"),
        lambda memory, v: memory.get_recent_episodes(episode_type=v),
    ),
    "get_recent_episodes(memory_type)": (
        all_but("None"),
        lambda memory, v: memory.get_recent_episodes(memory_type=v),
    ),
    "episodes(start)": (MOMENT, lambda memory, v: memory.episodes(v)),
    "episodes(end)": (MOMENT, lambda memory, v: memory.episodes(end=v)),
    "episodes(reverse)": (BOOL, lambda memory, v: memory.episodes(reverse=v)),
    "update_episode(id)": (ID, lambda memory, v: memory.update_episode(v, metadata={"m": 1})),
    "update_episode(content)": (OBJECT, lambda memory, v: memory.update_episode(KNOWN.id, content=v)),
    "update_episode(metadata)": (OBJECT, lambda memory, v: memory.update_episode(KNOWN.id, metadata=v)),
    "update_episode(episode_type)": (
        TEXT_OR_NONE,
        lambda memory, v: memory.update_episode(KNOWN.id, episode_type=v),
    ),
    "history(id)": (ID, lambda memory, v: memory.history(v)),
    "delete_episode(id)": (ID, lambda memory, v: memory.delete_episode(v)),
    "delete_episode(erase)": (BOOL, lambda memory, v: memory.delete_episode(KNOWN.id, erase=v)),
    "clear(erase)": (BOOL, lambda memory, v: memory.clear(erase=v)),
}

FIELDS: dict[str, list[str]] = {
    "agent_id": all_but(),
    "episode_type": all_but("text"),
    "content": all_but("an object"),
    "metadata": all_but("an object"),
    "memory_type": all_but(),
    "relevance": all_but("0"),
}


@pytest.fixture(scope="session")
def engine() -> str:
    """The limits stand before the engines: one is enough, and this one has the most behind it."""
    return "rocksdb"


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    """A memory of one known episode, whose newest episodes are in RAM."""
    memory = store.agent_memory(AGENT)
    memory.store_episode(KNOWN)
    memory.get_recent_episodes()
    return memory


def rows_of(memory: AgentMemory) -> list[tuple[bytes, bytes]]:
    return list(memory._operations._backend.scan())


def outcome_of(call: Callable[[], Any]) -> str:
    """How a call ended: the name of its error, with what would break whoever shows that error."""
    try:
        call()
    except QilbeeError as error:
        try:
            str(error).encode()
        except UnicodeEncodeError:
            return f"{type(error).__name__} of a text that is not UTF-8"
        return type(error).__name__
    except Exception as error:
        return type(error).__name__
    return "accepted"


def not_refused(outcomes: dict[str, str]) -> dict[str, str]:
    return {name: outcome for name, outcome in outcomes.items() if outcome != "InvalidError"}


@contextmanager
def untouched(memory: AgentMemory) -> Iterator[None]:
    """Nothing is stored meanwhile, and the memory is as good as before."""
    before = rows_of(memory)
    yield
    assert rows_of(memory) == before
    assert list(memory.episodes()) == [KNOWN] == memory.get_recent_episodes()
    assert memory.get_statistics().total_episodes == 1


class TestWrongTypes:
    @pytest.mark.parametrize("argument", ARGUMENTS)
    def test_a_wrong_argument_is_an_invalid_one_and_changes_nothing(self, memory: AgentMemory, argument: str) -> None:
        wrong, call = ARGUMENTS[argument]
        with untouched(memory):
            outcomes = {name: outcome_of(lambda name=name: call(memory, VALUES[name])) for name in wrong}  # type: ignore[misc]
            assert not_refused(outcomes) == {}

    @pytest.mark.parametrize("field", FIELDS)
    def test_a_wrong_field_of_an_episode_is_refused_when_it_is_stored(self, memory: AgentMemory, field: str) -> None:
        def store(name: str) -> None:
            episode = Episode(AGENT, "note", {"text": "new"})
            setattr(episode, field, VALUES[name])
            memory.store_episode(episode, idempotency_key=name)

        with untouched(memory):
            assert not_refused({name: outcome_of(lambda name=name: store(name)) for name in FIELDS[field]}) == {}  # type: ignore[misc]

    @pytest.mark.parametrize("argument", ["event_time", "id"])
    def test_an_episode_is_not_made_with_a_wrong_time_or_id(self, argument: str) -> None:
        wrong = MOMENT if argument == "event_time" else ID_OR_NONE

        def make(name: str) -> Episode:
            given: dict[str, Any] = {argument: VALUES[name]}
            return Episode(AGENT, "note", {}, **given)

        assert not_refused({name: outcome_of(lambda name=name: make(name)) for name in wrong}) == {}  # type: ignore[misc]

    def test_the_id_of_an_agent_is_text(self, store: Store) -> None:
        wrong = all_but("text", "a subclass of str")
        opened = {name: outcome_of(lambda name=name: store.agent_memory(VALUES[name])) for name in wrong}  # type: ignore[misc]
        assert not_refused(opened) == {}

    def test_the_asyncio_face_refuses_the_same(self) -> None:
        async def outcome(memory: AsyncAgentMemory, call: Callable[[Any, Any], Any], value: object) -> str:
            try:
                answer = call(memory, value)
                if isinstance(answer, Awaitable):
                    await answer
                else:
                    _ = [episode async for episode in answer]
            except Exception as error:
                return type(error).__name__
            return "accepted"

        async def all_outcomes() -> dict[str, str]:
            async with await aopen_store(backend="ephemeral") as store:
                memory = store.agent_memory(AGENT)
                await memory.store_episode(KNOWN)
                return {
                    f"{argument} = {name}": await outcome(memory, call, VALUES[name])
                    for argument, (wrong, call) in ARGUMENTS.items()
                    for name in wrong
                }

        assert not_refused(asyncio.run(all_outcomes())) == {}


NOT_JSON: dict[str, Any] = {
    name: VALUES[name]
    for name in ("bytes", "a tuple", "a set", "a datetime", "a date", "a Decimal", "a Fraction", "a complex", "NaN")
} | {
    "a frozenset": frozenset(),
    "an enum": Sizes.ONE,
    "a subclass of str": Text("x"),
    "an ordered dict": OrderedDict(),
    "an iterator": iter([]),
    "an object of ours": KNOWN,
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "1e999": 1e999,
    "2**64": 1 << 64,
    "-2**63 - 1": -(1 << 63) - 1,
    "5,000 digits": 10**4999,
}
PLACES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "at the top": ("text", lambda value: {"text": value}),
    "after good ones": ("b", lambda value: {"a": "x", "b": value}),
    "in a list": ("list[1]", lambda value: {"list": ["good", value]}),
    "deep": ("a.b[0][2].c", lambda value: {"a": {"b": [[1, {}, {"c": value}]]}}),
}


class TestWhatIsNotJson:
    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("field", ["content", "metadata"])
    def test_it_is_refused_with_the_path_to_it(self, memory: AgentMemory, field: str, place: str) -> None:
        path, put = PLACES[place]
        with untouched(memory):
            for value in NOT_JSON.values():
                fields: dict[str, Any] = {"content": {}, "metadata": {}, field: put(value)}
                for call in (
                    lambda fields=fields: memory.store_episode(Episode(AGENT, "note", **fields)),
                    lambda fields=fields: memory.update_episode(KNOWN.id, **fields),
                ):
                    with pytest.raises(InvalidError) as caught:
                        call()
                    assert caught.value.message.startswith(f"{field}.{path} is ")

    @pytest.mark.parametrize("value", [(1 << 64) - 1, -(1 << 63), 1.7976931348623157e308, 5e-324, -0.0])
    def test_the_greatest_and_smallest_numbers_are_allowed(self, memory: AgentMemory, value: float) -> None:
        read = memory.update_episode(KNOWN.id, content={"n": value}, metadata={"n": [value]})
        assert repr(read.content["n"]) == repr(value)

    @pytest.mark.parametrize(
        "key", [1, 1.5, True, None, b"k", ("k",), 10**4999, Text("k")], ids=lambda key: str(type(key))
    )
    @pytest.mark.parametrize("place", PLACES)
    def test_a_key_that_is_not_text_is_refused(self, memory: AgentMemory, key: object, place: str) -> None:
        value = PLACES[place][1]({key: 1})
        with untouched(memory):
            for field in ("content", "metadata"):
                fields: dict[str, Any] = {"content": {}, field: value}
                assert outcome_of(lambda fields=fields: memory.store_episode(Episode(AGENT, "note", **fields))) == (  # type: ignore[misc]
                    "InvalidError"
                )


SURROGATES: dict[str, Any] = {
    "alone": {"text": "\ud800"},
    "of the low half": {"text": "a\udfff"},
    "in a key": {"\ud800": "x"},
    "the wrong way round": {"text": "\udc00\ud800"},
    "in a list": {"list": [1, ["\ud800"]]},
    "in a deep key": {"a": {"b": [{"k\udc00": 1}]}},
    "in a long text": {"text": "x" * 300_000 + "\ud800"},
    "in a key on the way to another error": {"\ud800": {"x": {1, 2}}},
}


class TestLoneSurrogates:
    @pytest.mark.parametrize("where", SURROGATES)
    @pytest.mark.parametrize("field", ["content", "metadata"])
    def test_they_are_refused_on_every_way_in(self, memory: AgentMemory, field: str, where: str) -> None:
        fields: dict[str, Any] = {"content": {"text": "x"}, field: SURROGATES[where]}
        early = datetime(1999, 1, 1, tzinfo=UTC)
        ways: dict[str, Callable[[], object]] = {
            "new": lambda: memory.store_episode(Episode(AGENT, "note", **fields)),
            "late": lambda: memory.store_episode(Episode(AGENT, "note", event_time=early, **fields)),
            "under a known id": lambda: memory.store_episode(Episode(AGENT, "note", id=KNOWN.id, **fields)),
            "under a key": lambda: memory.store_episode(Episode(AGENT, "note", **fields), idempotency_key="new"),
            "in a batch": lambda: memory.store_episodes([KNOWN, Episode(AGENT, "note", **fields)]),
            "imported": lambda: memory.import_episodes([Episode(AGENT, "note", **fields)]),
            "as an update": lambda: memory.update_episode(KNOWN.id, **{field: SURROGATES[where]}),
        }
        with untouched(memory):
            assert not_refused({name: outcome_of(way) for name, way in ways.items()}) == {}

    def test_under_a_known_idempotency_key_too(self, store: Store) -> None:
        memory = store.agent_memory(AGENT)
        memory.store_episode(KNOWN, idempotency_key="k")
        with pytest.raises(InvalidError, match="lone surrogate"):
            memory.store_episode(Episode(AGENT, "note", {"text": "\ud800"}), idempotency_key="k")
        with pytest.raises(InvalidError, match="lone surrogate"):
            memory.store_episode(KNOWN, idempotency_key="\ud800")

    def test_the_error_says_where(self, memory: AgentMemory) -> None:
        with pytest.raises(InvalidError, match=r"content\.a\[1\]\.b holds a lone surrogate"):
            memory.store_episode(Episode(AGENT, "note", {"a": ["x", {"b": "\ud800"}]}))


class TestNesting:
    @pytest.mark.parametrize("kind", [list, dict])
    @pytest.mark.parametrize("field", ["content", "metadata"])
    def test_as_deep_as_allowed_comes_back(self, memory: AgentMemory, field: str, kind: Any) -> None:
        value = {"k": nested(limits.JSON_DEPTH_MAX - 1, kind)}
        fields: dict[str, Any] = {"content": {}, field: value}
        read = memory.get_episode(memory.store_episode(Episode(AGENT, "note", **fields)))
        assert read is not None
        assert getattr(read, field) == value

    @pytest.mark.parametrize("kind", [list, dict])
    @pytest.mark.parametrize("depth", [limits.JSON_DEPTH_MAX + 1, 100, 1_000, 200_000])
    def test_deeper_is_refused(self, memory: AgentMemory, depth: int, kind: Any) -> None:
        value = {"k": nested(depth - 1, kind)}
        with untouched(memory):
            for call in (
                lambda: memory.store_episode(Episode(AGENT, "note", value)),
                lambda: memory.store_episode(Episode(AGENT, "note", {}, metadata=value)),
                lambda: memory.update_episode(KNOWN.id, content=value),
            ):
                with pytest.raises(InvalidError, match="nested more than 32 deep"):
                    call()

    def test_what_contains_itself_is_refused(self, memory: AgentMemory) -> None:
        loop: list[Any] = []
        loop.append(loop)
        ring: dict[str, Any] = {}
        ring["ring"] = ring
        with untouched(memory):
            for value in ({"loop": loop}, ring):
                with pytest.raises(InvalidError, match="nested"):
                    memory.store_episode(Episode(AGENT, "note", value))

    def test_what_would_be_endless_when_written_out_is_refused_without_writing_it_out(
        self, memory: AgentMemory
    ) -> None:
        laughs: list[Any] = []
        for _ in range(limits.JSON_DEPTH_MAX - 3):
            laughs = [laughs, laughs]  # 2**29 lists, written out
        with untouched(memory), interrupted_after(seconds=60), pytest.raises(InvalidError):
            memory.store_episode(Episode(AGENT, "note", {"laughs": laughs}))


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Fail, instead of going on for hours."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise AssertionError("it went on and on")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def packed_bytes(value: object) -> int:
    return len(msgspec.msgpack.encode(value))


def of_bytes(size: int, unit: str = "x") -> dict[str, Any]:
    """An object that takes ``size`` bytes as MessagePack."""
    value = {"text": unit * ((size - 11) // len(unit.encode()))}
    value["text"] += "x" * (size - packed_bytes(value))
    assert packed_bytes(value) == size
    return value


class TestSizes:
    @pytest.mark.parametrize("unit", ["x", "\u00e9", "\U0001f375"])
    @pytest.mark.parametrize(
        ("field", "bytes_max"), [("content", limits.CONTENT_BYTES_MAX), ("metadata", limits.METADATA_BYTES_MAX)]
    )
    def test_content_and_metadata_take_so_many_bytes_and_not_one_more(
        self, memory: AgentMemory, field: str, bytes_max: int, unit: str
    ) -> None:
        with untouched(memory):
            fields: dict[str, Any] = {"content": {}, field: of_bytes(bytes_max + 1, unit)}
            with pytest.raises(InvalidError, match=f"{field} takes {bytes_max + 1} bytes, the most is {bytes_max}"):
                memory.store_episode(Episode(AGENT, "note", **fields))
            with pytest.raises(InvalidError, match="the most is"):
                memory.update_episode(KNOWN.id, **{field: fields[field]})
        for size in (bytes_max - 1, bytes_max):
            fields[field] = of_bytes(size, unit)
            read = memory.get_episode(memory.store_episode(Episode(AGENT, "note", **fields)))
            assert read is not None
            assert getattr(read, field) == fields[field]

    @pytest.mark.parametrize("serializer", ["msgpack", "json"])
    @pytest.mark.parametrize("engine", ["ephemeral"])
    def test_a_size_is_the_same_however_it_is_written(self, open_here: OpenHere, serializer: str) -> None:
        memory = open_here(serializer=serializer).agent_memory(AGENT)
        memory.store_episode(KNOWN)
        # 9 bytes each as MessagePack, 4 as JSON; then 1 byte each, and 5.
        for short, long in (([0.5] * 7_000, [0.5] * 8_000), (["\0"] * 30_000, ["\0"] * 33_000)):
            memory.store_episode(Episode(AGENT, "note", {}, metadata={"list": short}))
            with pytest.raises(InvalidError, match="metadata takes"):
                memory.store_episode(Episode(AGENT, "note", {}, metadata={"list": long}))
            with pytest.raises(InvalidError, match="metadata takes"):
                memory.update_episode(KNOWN.id, metadata={"list": long})

    @settings(max_examples=80)
    @given(value=st.dictionaries(st.text(max_size=20), st.text(max_size=60), max_size=20), room=st.integers(-40, 40))
    def test_an_object_of_texts_is_measured_exactly(self, value: dict[str, Any], room: int) -> None:
        bytes_max = packed_bytes(value) + room
        if room >= 0:
            limits.check_size(value, "content", bytes_max)
        else:
            with pytest.raises(InvalidError):
                limits.check_size(value, "content", bytes_max)

    def test_keys_are_counted_in_all_objects_together(self, memory: AgentMemory) -> None:
        most = limits.JSON_KEYS_MAX
        flat: dict[str, Any] = {f"k{number}": "x" for number in range(most)}
        spread: dict[str, Any] = {"list": [{f"k{number}": 1} for number in range(most - 1)]}
        for value in (flat, spread):
            memory.store_episode(Episode(AGENT, "note", value, metadata=value))
        memory.clear()
        memory.store_episode(KNOWN)
        flat["one more"] = "x"
        spread["list"].append({"one more": 1})
        with untouched(memory):
            for value in (flat, spread):
                for episode in (Episode(AGENT, "note", value), Episode(AGENT, "note", {}, metadata=value)):
                    with pytest.raises(InvalidError, match=f"more than {most} keys"):
                        memory.store_episode(episode)

    def test_a_list_of_too_many_items_is_refused_before_it_is_walked(self) -> None:
        value = {"list": [0] * 50_000}
        tracemalloc.start()
        try:
            with pytest.raises(InvalidError):
                limits.check_object(value, "content", 5_000)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 2_000_000

    @pytest.mark.parametrize("unit", ["x", "\u00e9"])
    def test_an_episode_type_takes_so_many_bytes_and_not_one_more(self, memory: AgentMemory, unit: str) -> None:
        most = limits.EPISODE_TYPE_BYTES_MAX // len(unit.encode())
        memory.store_episode(Episode(AGENT, unit * most, {}))
        memory.update_episode(KNOWN.id, episode_type=unit * most)
        assert len(memory.get_recent_episodes(episode_type=unit * most)) == 2
        memory.clear()
        memory.store_episode(KNOWN)
        with untouched(memory):
            for call in (
                lambda: memory.store_episode(Episode(AGENT, unit * most + "x", {})),
                lambda: memory.store_episode(Episode(AGENT, "", {})),
                lambda: memory.update_episode(KNOWN.id, episode_type=unit * most + "x"),
            ):
                with pytest.raises(InvalidError, match="episode_type is"):
                    call()

    def test_an_agent_has_so_many_episode_types_and_not_one_more(self, memory: AgentMemory) -> None:
        most = limits.EPISODE_TYPES_MAX
        ids = memory.store_episodes(Episode(AGENT, f"type {number}", {}) for number in range(most - 1))
        before = memory.get_statistics()
        assert len(before.episodes_by_type) == most
        for call in (
            lambda: memory.store_episode(Episode(AGENT, "one more", {})),
            lambda: memory.store_episodes([Episode(AGENT, "note", {}), Episode(AGENT, "one more", {})]),
        ):
            with pytest.raises(InvalidError, match=f"has {most} episode types already"):
                call()
        assert memory.get_statistics().episodes_by_type == before.episodes_by_type
        memory.store_episode(Episode(AGENT, "type 7", {}))
        # Its own type goes with the update, and a type without episodes is none.
        memory.update_episode(ids[0], episode_type="one more")
        memory.delete_episode(ids[1])
        memory.store_episode(Episode(AGENT, "another", {}))
        assert len(memory.get_statistics().episodes_by_type) == most

    @pytest.mark.parametrize("unit", ["x", "\U0001f375"])
    def test_an_idempotency_key_takes_so_many_bytes_and_not_one_more(self, memory: AgentMemory, unit: str) -> None:
        most = limits.IDEMPOTENCY_KEY_BYTES_MAX // len(unit.encode())
        with untouched(memory):
            for key in (unit * most + "x", ""):
                with pytest.raises(InvalidError, match="idempotency_key is"):
                    memory.store_episode(Episode(AGENT, "note", {}), idempotency_key=key)
        first = memory.store_episode(Episode(AGENT, "note", {}), idempotency_key=unit * most)
        assert memory.store_episode(Episode(AGENT, "note", {}), idempotency_key=unit * most) == first

    @pytest.mark.parametrize("engine", ["rocksdb", "leveldb", "ephemeral"])
    def test_a_batch_takes_so_many_bytes_and_not_many_more(self, open_here: OpenHere) -> None:
        memory = open_here(compression_type="none").agent_memory(AGENT)
        part = random.Random(1).randbytes(limits.CONTENT_BYTES_MAX // 2 - 100).hex()
        whole = [Episode(AGENT, "note", {"text": part}) for _ in range(limits.BATCH_BYTES_MAX // len(part) + 1)]
        assert len(whole) == 33
        with pytest.raises(InvalidError, match=f"the most in a batch is {limits.BATCH_BYTES_MAX}.*import_episodes"):
            memory.store_episodes(whole)
        assert list(memory.episodes()) == []
        assert len(memory.store_episodes(whole[:-1])) == 32
        memory.clear()
        told: list[int] = []
        assert memory.import_episodes(whole, progress=told.append) == 33
        assert told == [16, 33]
        assert memory.get_statistics().total_episodes == 33


class TestNumbers:
    @pytest.mark.parametrize("limit", [1, limits.LIMIT_MAX])
    def test_a_limit_is_from_1_to_1000(self, memory: AgentMemory, limit: int) -> None:
        assert memory.get_recent_episodes(limit) == [KNOWN]
        assert memory.get_episodes([KNOWN.id] * limit) == [KNOWN] * limit

    @pytest.mark.parametrize("limit", [0, -1, limits.LIMIT_MAX + 1, 1 << 70, 1.0, True, "1"])
    def test_any_other_limit_is_refused(self, memory: AgentMemory, limit: Any) -> None:
        with pytest.raises(InvalidError, match=f"limit is {limit!r}.*from 1 to {limits.LIMIT_MAX}"):
            memory.get_recent_episodes(limit)

    def test_more_than_a_thousand_ids_are_refused(self, memory: AgentMemory) -> None:
        with pytest.raises(InvalidError, match="1001 ids, the most is 1000"):
            memory.get_episodes([KNOWN.id] * 1001)

    @pytest.mark.parametrize("relevance", [0, 0.0, -0.0, 5e-324, 0.5, 1, 1.0])
    @pytest.mark.parametrize("memory_type", ["episodic", "factual"])
    def test_relevance_is_from_0_to_1(self, memory: AgentMemory, relevance: float, memory_type: Any) -> None:
        memory.store_episode(Episode(AGENT, "note", {}, relevance=relevance, memory_type=memory_type))
        assert 0 <= memory.get_recent_episodes(1)[0].relevance <= 1

    @pytest.mark.parametrize(
        "relevance",
        [
            -5e-324,
            -1,
            1.0000000000000002,
            2,
            1e308,
            float("nan"),
            float("inf"),
            True,
            False,
            "0.5",
            "1",
            None,
            Decimal(1),
            Decimal("0.5"),
            Fraction(1),
            complex(1),
        ],
    )
    @pytest.mark.parametrize("memory_type", ["episodic", "factual"])
    def test_any_other_relevance_is_refused_and_the_memory_is_as_good_as_before(
        self, memory: AgentMemory, relevance: Any, memory_type: Any
    ) -> None:
        episode = Episode(AGENT, "note", {}, relevance=relevance, memory_type=memory_type)
        with untouched(memory), pytest.raises(InvalidError, match="relevance is"):
            memory.store_episode(episode, idempotency_key="k")
        memory.store_episode(Episode(AGENT, "note", {}))

    @pytest.mark.parametrize("memory_type", ["Episodic", "", "episode", "memory", " episodic"])
    def test_an_unknown_memory_type_is_refused_with_the_known_ones(self, memory: AgentMemory, memory_type: Any) -> None:
        with untouched(memory):
            for call in (
                lambda: memory.store_episode(Episode(AGENT, "note", {}, memory_type=memory_type)),
                lambda: memory.get_recent_episodes(memory_type=memory_type),
            ):
                with pytest.raises(InvalidError, match="episodic, semantic, procedural, factual"):
                    call()


class TestAgents:
    def test_an_episode_of_another_agent_is_refused(self, memory: AgentMemory) -> None:
        with untouched(memory):
            for name in ("other", "Bot", "bot ", "bo"):
                with pytest.raises(InvalidError, match=f"belongs to agent '{name}', this memory to 'bot'"):
                    memory.store_episode(Episode(name, "note", {}))

    def test_an_id_takes_so_many_bytes_and_not_one_more(self, store: Store) -> None:
        for unit in ("a", "\u00e9", "\u732b", "\U0001f408"):
            longest = unit * (AGENT_ID_BYTES_MAX // len(unit.encode()))
            longest += "a" * (AGENT_ID_BYTES_MAX - len(longest.encode()))
            store.agent_memory(longest).store_episode(Episode(longest, "note", {"text": unit}))
            assert longest in store.agents()
            with pytest.raises(InvalidError, match="256 bytes long"):
                store.agent_memory(longest + "a")


def test_the_named_limits_are_those_of_the_documents() -> None:
    assert (limits.CONTENT_BYTES_MAX, limits.METADATA_BYTES_MAX) == (1 << 20, 64 << 10)
    assert (limits.JSON_DEPTH_MAX, limits.JSON_KEYS_MAX) == (32, 1000)
    assert (limits.LIMIT_MAX, limits.BATCH_EPISODES_MAX) == (1000, 1000)
    assert AGENT_ID_BYTES_MAX == 255


def test_python_still_limits_the_digits_it_prints() -> None:
    assert 0 < sys.get_int_max_str_digits() < 4999, "the integers of 5,000 digits here would prove nothing"
