"""Storing and reading episodes, sentence by sentence, on every engine."""

from __future__ import annotations

import pickle
import random
import re
import struct
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared.notes import AGENT, NOON, at, ids_of, note, on_disk, texts

import qilbee_core
from qilbee_core import (
    JSON,
    AgentMemory,
    Episode,
    InvalidError,
    Store,
)

OpenHere = Callable[..., Store]


@pytest.fixture
def memory(store: Store) -> AgentMemory:
    return store.agent_memory(AGENT)


def is_exactly(given: object, read: object) -> bool:
    """Equal in types too, in the bits of floats, and in the order of keys."""
    if type(given) is not type(read):
        return False
    if isinstance(given, dict) and isinstance(read, dict):
        return list(given) == list(read) and all(is_exactly(given[key], read[key]) for key in given)
    if isinstance(given, list) and isinstance(read, list):
        return len(given) == len(read) and all(map(is_exactly, given, read))
    if isinstance(given, float):
        return struct.pack(">d", given) == struct.pack(">d", read)
    return given == read


def test_exactly_tells_apart_what_python_takes_for_equal() -> None:
    assert is_exactly({"a": [1, 1.0, True, None, "x"]}, {"a": [1, 1.0, True, None, "x"]})
    for other in (1.0, True, "1", None, [1]):
        assert not is_exactly(1, other)
    assert not is_exactly(0.0, -0.0)
    assert not is_exactly({"a": 1, "b": 2}, {"b": 2, "a": 1})


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(max_size=8), JSON_VALUES, max_size=4)


class TestWhatIsStored:
    def test_an_episode_comes_back_with_everything_it_was_given(self, memory: AgentMemory) -> None:
        given = Episode(
            AGENT,
            "action",
            {"action": "scaled", "result": {"instances": 4}},
            metadata={"tags": ["ops"], "cost": 0.25},
            event_time=NOON,
            memory_type="procedural",
            relevance=0.5,
        )
        id_ = memory.store_episode(given)
        read = memory.get_episode(id_)
        assert read is not None
        assert read == given
        assert (read.id, read.event_time, read.memory_type, read.relevance) == (id_, NOON, "procedural", 0.5)
        assert read.transaction_time is not None
        assert abs(read.transaction_time - datetime.now(UTC)) < timedelta(minutes=1)
        assert given.transaction_time is None

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=JSON_OBJECTS, metadata=JSON_OBJECTS)
    def test_every_json_value_comes_back_exactly(
        self, memory: AgentMemory, content: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        id_ = memory.store_episode(Episode(AGENT, "note", content, metadata=metadata))
        by_id, newest = memory.get_episode(id_), memory.get_recent_episodes(1)[0]
        (listed,) = memory.get_episodes([id_])
        scanned = next(memory.episodes(reverse=True))
        updated = memory.update_episode(id_, content={"before": 1}, metadata={"before": 2})
        assert updated.content == {"before": 1}
        memory.update_episode(id_, content=content, metadata=metadata)
        for read in (by_id, newest, listed, scanned, memory.history(id_)[0], memory.get_episode(id_)):
            assert read is not None
            assert is_exactly(content, read.content)
            assert is_exactly(metadata, read.metadata)
        memory.delete_episode(id_)

    @on_disk
    def test_every_json_value_comes_back_exactly_after_the_store_was_closed(self, open_here: OpenHere) -> None:
        store = open_here()
        memory = store.agent_memory(AGENT)
        kept: dict[str, dict[str, Any]] = {}

        @settings(max_examples=40)
        @given(content=JSON_OBJECTS)
        def fill(content: dict[str, Any]) -> None:
            kept[memory.store_episode(Episode(AGENT, "note", content, metadata={"m": content}))] = content

        fill()
        store.close()
        memory = open_here().agent_memory(AGENT)
        assert len(kept) >= 40
        for id_, content in kept.items():
            read = memory.get_episode(id_)
            assert read is not None
            assert is_exactly(content, read.content)
            assert is_exactly({"m": content}, read.metadata)

    @pytest.mark.parametrize("engine", ["ephemeral"])
    @pytest.mark.parametrize("serializer", ["msgpack", "json"])
    @pytest.mark.parametrize("compression_type", ["none", "lz4", "snappy", "zstd"])
    def test_numbers_of_each_type_stay_apart_however_they_are_kept(
        self, open_here: OpenHere, serializer: str, compression_type: str
    ) -> None:
        store = open_here(serializer=serializer, compression_type=compression_type, compression_scope="value")
        memory = store.agent_memory(AGENT)
        content: dict[str, JSON] = {
            "one": [1, 1.0, True, "1"],
            "zero": [0, 0.0, -0.0, False, None, "", [], {}],
            "edges": [-(1 << 63), (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 5e-324, 1.7976931348623157e308, 0.1, 1e22],
            "text": ["\0", "\x7f\x85\u2028", "e\u0301 is not \u00e9", "\U0010ffff", "null", "x" * 5000],
        }
        read = memory.get_episode(memory.store_episode(Episode(AGENT, "note", content, metadata=content)))
        assert read is not None
        assert is_exactly(content, read.content)
        assert is_exactly(content, read.metadata)

    def test_what_is_changed_after_the_store_is_not_changed_in_it(self, memory: AgentMemory) -> None:
        inner = [1]
        episode = Episode(AGENT, "note", {"inner": inner})
        id_ = memory.store_episode(episode)
        memory.get_recent_episodes()
        inner.append(2)
        for read in (memory.get_episode(id_), memory.get_recent_episodes()[0]):
            assert read is not None
            assert read.content == {"inner": [1]}
            read.content["inner"].append(3)  # type: ignore[union-attr]
        assert memory.get_recent_episodes()[0].content == {"inner": [1]}

    @pytest.mark.parametrize("memory_type", ["factual", "procedural"])
    @pytest.mark.parametrize("relevance", [1.0, 1, 0.5, 0.3, 0.1, 0.0123456789, 0.001, 0.0001, 2.0**-20])
    def test_a_memory_that_never_decays_gives_the_relevance_back_that_it_was_stored_with(
        self, memory: AgentMemory, memory_type: str, relevance: float
    ) -> None:
        read = memory.get_episode(memory.store_episode(note(memory_type=memory_type, relevance=relevance)))
        assert read is not None
        assert read.relevance == relevance

    def test_relevance_zero_counts_as_a_millionth(self, memory: AgentMemory) -> None:
        read = memory.get_episode(memory.store_episode(note(memory_type="factual", relevance=0)))
        assert read is not None
        assert read.relevance == 2.0**-20

    def test_nothing_is_ever_pickled(self, open_here: OpenHere, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("pickled")

        for name in ("dumps", "loads", "dump", "load"):
            monkeypatch.setattr(pickle, name, refuse)
        memory = open_here().agent_memory(AGENT)
        bomb = b"cos\nsystem\n(S'touch pickled'\ntR.".decode()
        id_ = memory.store_episode(note(bomb))
        memory.update_episode(id_, metadata={"bomb": bomb})
        memory.clear()
        memory.store_episode(note(bomb))
        assert texts([*memory.get_recent_episodes(), *memory.episodes()]) == [bomb, bomb]

    def test_nothing_of_ours_can_pickle(self) -> None:
        sources = [path for path in Path(qilbee_core.__file__).parent.rglob("*.py") if "testing" not in path.parts]
        assert len(sources) > 30
        assert [path for path in sources if re.search(r"^\s*(import|from) c?[Pp]ickle", path.read_text(), re.M)] == []


class TestIds:
    def test_an_episode_has_its_id_before_it_is_stored(self, memory: AgentMemory) -> None:
        episode = note()
        id_ = episode.id
        assert len(id_) == 36
        assert memory.get_episode(id_) is None
        assert memory.store_episode(episode) == id_
        assert episode.id == id_

    def test_ids_sort_by_event_time_and_then_by_creation(self) -> None:
        created = [at(3), at(1), at(1), at(2)]
        assert sorted(created, key=lambda episode: episode.id) == [created[1], created[2], created[3], created[0]]
        now = [note() for _ in range(100)]
        assert ids_of(now) == sorted(ids_of(now))

    def test_an_id_carries_its_event_time(self, memory: AgentMemory) -> None:
        given = at(7)
        again = note(id=given.id)
        assert again.event_time == NOON + timedelta(minutes=7)
        assert note(id=given.id, event_time=given.event_time).id == given.id
        with pytest.raises(InvalidError, match="carries the event time 2024-02-29T12:07:00"):
            note(id=given.id, event_time=NOON)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "x",
            "0" * 36,
            "550e8400-e29b-41d4-a716-446655440000",  # a random UUID
            "01ffffff-ffff-8fff-3fff-ffffffffffff",
            "ffffffff-ffff-8fff-bfff-ffffffffffff",  # after year 9999
            "00DCBFFE-FF2A-8C00-8000-000000000001",
            " 00dcbffe-ff2a-8c00-8000-00000000001",
            "\ud800",
            "\u0660\u0660dcbffe-ff2a-8c00-8000-000000000001",
        ],
    )
    def test_what_is_no_id_of_ours_is_refused_by_every_verb(self, memory: AgentMemory, text: str) -> None:
        for verb in (
            memory.get_episode,
            memory.delete_episode,
            memory.history,
            memory.update_episode,
            lambda id_: memory.get_episodes([id_]),
            lambda id_: memory.get_recent_episodes(before=id_),
            lambda id_: note(id=id_),
        ):
            with pytest.raises(InvalidError, match="is not an episode id"):
                verb(text)


class TestEventTimes:
    @pytest.mark.parametrize(
        "moment",
        [
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
            datetime(2024, 3, 31, 2, 30, tzinfo=timezone(timedelta(hours=-11, minutes=-30))),
        ],
    )
    def test_every_time_from_year_1_to_9999_comes_back_in_utc(self, memory: AgentMemory, moment: datetime) -> None:
        id_ = memory.store_episode(note(event_time=moment))
        read = memory.get_episode(id_)
        assert read is not None
        assert read.event_time == moment
        assert read.event_time.tzinfo is UTC

    def test_a_time_without_a_zone_is_taken_as_utc(self, memory: AgentMemory) -> None:
        naive = NOON.replace(tzinfo=None)
        episode = note(event_time=naive)
        assert episode.event_time == NOON
        memory.store_episode(episode)
        assert ids_of(memory.episodes(naive, naive + timedelta(microseconds=1))) == [episode.id]

    def test_so_is_one_whose_zone_does_not_know(self, memory: AgentMemory) -> None:
        class Unknown(tzinfo):
            def utcoffset(self, moment: datetime | None) -> None:
                return None

            tzname = dst = utcoffset

        episode = note(event_time=NOON.replace(tzinfo=Unknown()))
        assert episode.event_time == NOON
        memory.store_episode(episode)
        assert ids_of(memory.episodes(NOON.replace(tzinfo=Unknown()))) == [episode.id]

    def test_times_in_any_zone_sort_by_the_moment(self, memory: AgentMemory) -> None:
        moments = [datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=hours))) for hours in (-12, 3, 0, 14, -3.5)]
        for moment in [*moments, datetime(1, 1, 1), datetime.max]:
            memory.store_episode(note(event_time=moment))
        read = [episode.event_time for episode in memory.episodes()]
        assert read == sorted(read)
        assert set(read[1:-1]) == set(moments)

    @pytest.mark.parametrize("hours", [-14, 14])
    def test_a_moment_outside_of_the_years_is_refused(self, hours: float) -> None:
        edge = datetime.min if hours > 0 else datetime.max
        with pytest.raises(InvalidError, match="years 1 to 9999"):
            note(event_time=edge.replace(tzinfo=timezone(timedelta(hours=hours))))


class TestRecent:
    def test_the_newest_come_first_by_event_time_whatever_the_order_of_the_stores(self, memory: AgentMemory) -> None:
        minutes = list(range(60))
        random.Random(3).shuffle(minutes)
        for done, minute in enumerate(minutes):
            memory.store_episode(at(minute))
            assert texts(memory.get_recent_episodes(5)) == sorted(minutes[: done + 1], reverse=True)[:5]
        assert texts(memory.get_recent_episodes(1000)) == list(range(59, -1, -1))

    def test_ten_are_given_where_no_limit_is(self, memory: AgentMemory) -> None:
        assert memory.get_recent_episodes() == []
        memory.store_episodes(at(minute) for minute in range(30))
        assert texts(memory.get_recent_episodes()) == list(range(29, 19, -1))

    @pytest.mark.parametrize("limit", [1, 7, 127, 128, 129, 300, 1000])
    def test_any_limit_gives_that_many(self, memory: AgentMemory, limit: int) -> None:
        memory.store_episodes(at(minute) for minute in range(400))
        for _ in range(3):
            assert texts(memory.get_recent_episodes(limit)) == list(range(399, 399 - min(limit, 400), -1))
        memory.store_episode(at(400))
        assert texts(memory.get_recent_episodes(limit))[:2] == [400, 399][:limit]

    def test_pages_fit_together_while_new_ones_are_stored(self, memory: AgentMemory) -> None:
        memory.store_episodes(at(minute) for minute in range(100))
        page, pages = memory.get_recent_episodes(7), []
        while page:
            pages.append(page)
            memory.store_episode(at(1000 + len(pages)))
            page = memory.get_recent_episodes(7, before=page[-1].id)
        assert [text for page in pages for text in texts(page)] == list(range(99, -1, -1))
        assert memory.get_recent_episodes(7, before=pages[1][-1].id) == pages[2]

    def test_a_page_begins_below_an_id_that_is_not_stored_any_more(self, memory: AgentMemory) -> None:
        given = [at(minute) for minute in range(10)]
        memory.store_episodes(given)
        memory.delete_episode(given[5].id)
        assert texts(memory.get_recent_episodes(3, before=given[5].id)) == [4, 3, 2]
        assert memory.get_recent_episodes(before=given[0].id) == []

    def test_filters_choose_by_type_and_by_memory_type(self, memory: AgentMemory) -> None:
        kinds = ["note", "other"]
        types = ["episodic", "semantic", "factual"]
        memory.store_episodes(
            at(minute, episode_type=kinds[minute % 2], memory_type=types[minute % 3]) for minute in range(60)
        )
        expected = list(range(59, -1, -1))
        recent = memory.get_recent_episodes
        assert texts(recent(100, episode_type="note")) == [m for m in expected if m % 2 == 0]
        assert texts(recent(100, memory_type="semantic")) == [m for m in expected if m % 3 == 1]
        assert texts(recent(2, episode_type="other", memory_type="factual")) == [59, 53]
        before = recent(1, episode_type="other", memory_type="factual")[0].id
        assert texts(recent(3, before=before, episode_type="other", memory_type="factual")) == [53, 47, 41]
        assert recent(100, memory_type="procedural") == []
        assert recent(100, episode_type="Note") == []

    def test_an_update_moves_an_episode_between_types_and_not_in_time(self, memory: AgentMemory) -> None:
        given = [at(minute) for minute in range(5)]
        memory.store_episodes(given)
        memory.get_recent_episodes()
        memory.update_episode(given[1].id, content={"text": "changed"}, episode_type="edited")
        assert texts(memory.get_recent_episodes()) == [4, 3, 2, "changed", 0]
        assert texts(memory.get_recent_episodes(episode_type="edited")) == ["changed"]


class TestLists:
    def test_one_answer_for_each_id_in_the_order_given(self, memory: AgentMemory) -> None:
        given = [at(minute) for minute in range(100)]
        memory.store_episodes(given)
        asked = [given[7].id, at(5).id, given[99].id, given[7].id, given[0].id]
        answers = memory.get_episodes(asked)
        assert [None if answer is None else answer.content["text"] for answer in answers] == [7, None, 99, 7, 0]
        assert memory.get_episodes([]) == []
        assert memory.get_episodes(ids_of(given)) == given


class TestRanges:
    def test_a_range_is_half_open(self, memory: AgentMemory) -> None:
        memory.store_episodes(at(minute) for minute in range(10))
        start, end = NOON + timedelta(minutes=2), NOON + timedelta(minutes=5)
        microsecond = timedelta(microseconds=1)
        assert texts(memory.episodes(start, end)) == [2, 3, 4]
        assert texts(memory.episodes(start, end, reverse=True)) == [4, 3, 2]
        assert texts(memory.episodes(start + microsecond, end + microsecond)) == [3, 4, 5]
        assert texts(memory.episodes(end)) == [5, 6, 7, 8, 9]
        assert texts(memory.episodes(end=start)) == [0, 1]
        assert texts(memory.episodes(end=start, reverse=True)) == [1, 0]
        assert texts(memory.episodes(reverse=True)) == list(range(9, -1, -1))

    @pytest.mark.parametrize("reverse", [False, True])
    def test_an_empty_or_backward_range_is_empty(self, memory: AgentMemory, reverse: bool) -> None:
        assert list(memory.episodes(reverse=reverse)) == []
        memory.store_episodes(at(minute) for minute in range(5))
        later = NOON + timedelta(minutes=3)
        assert list(memory.episodes(later, later, reverse=reverse)) == []
        assert list(memory.episodes(later, NOON, reverse=reverse)) == []

    def test_a_range_to_the_edges_of_time(self, memory: AgentMemory) -> None:
        for moment in (datetime.min, NOON, datetime.max):
            memory.store_episode(note(event_time=moment))
        assert len(list(memory.episodes(datetime.min))) == 3
        assert len(list(memory.episodes(datetime.min, datetime.max))) == 2
        assert len(list(memory.episodes(datetime.max))) == 1
        east, west = (timezone(timedelta(hours=hours)) for hours in (14, -12))
        # Moments before year 1 and after 9999, which such a zone can say.
        assert len(list(memory.episodes(datetime.min.replace(tzinfo=east)))) == 3
        assert len(list(memory.episodes(end=datetime.max.replace(tzinfo=west)))) == 3
        assert len(list(memory.episodes(end=datetime.min.replace(tzinfo=east)))) == 0

    @pytest.mark.parametrize("reverse", [False, True])
    def test_the_view_is_of_the_moment_of_the_call(self, memory: AgentMemory, reverse: bool) -> None:
        given = [at(minute) for minute in range(50)]
        memory.store_episodes(given)
        view = memory.episodes(reverse=reverse)
        half_read = memory.episodes(reverse=reverse)
        begun = [next(half_read) for _ in range(25)]
        memory.store_episodes([at(-1), at(24.5), at(99)])
        memory.update_episode(given[30].id, content={"text": "changed"})
        memory.delete_episode(given[40].id)
        expected = list(range(50))[:: -1 if reverse else 1]
        assert texts(view) == expected
        assert texts([*begun, *half_read]) == expected
        memory.store_episode(at(100))
        last = memory.episodes(reverse=reverse)
        memory.clear()
        assert len(list(last)) == 53
        assert list(memory.episodes()) == []

    def test_episodes_are_read_as_they_are_asked_for(
        self, memory: AgentMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        memory.store_episodes(at(minute) for minute in range(50))
        restored = 0
        restore = memory._operations._restore

        def count(*given: Any) -> Episode | None:
            nonlocal restored
            restored += 1
            return restore(*given)

        monkeypatch.setattr(memory._operations, "_restore", count)
        view = memory.episodes()
        assert restored == 0
        next(view), next(view)
        assert restored == 2


class TestOneMemoryForEachId:
    def test_forms_of_an_id_that_unicode_takes_for_equal_are_one_agent(self, store: Store) -> None:
        composed, decomposed = "caf\u00e9", "cafe\u0301"
        assert unicodedata.normalize("NFC", decomposed) == composed
        memories = [store.agent_memory(composed), store.agent_memory(decomposed)]
        for number in range(3):
            for memory in memories:
                memory.get_recent_episodes()
                memory.store_episode(Episode(memory.agent_id, "note", {"text": number}))
        assert [texts(memory.get_recent_episodes()) for memory in memories] == [[2, 2, 1, 1, 0, 0]] * 2
        assert [memory.get_statistics().total_episodes for memory in memories] == [6, 6]
        assert store.agents() == [composed]
        assert store.verify().problems == []

    def test_an_episode_may_name_its_agent_in_either_form(self, store: Store) -> None:
        for form in ("caf\u00e9", "cafe\u0301"):
            for name in ("caf\u00e9", "cafe\u0301"):
                store.agent_memory(form).store_episode(Episode(name, "note", {"text": form + name}))
        assert store.agent_memory("caf\u00e9").get_statistics().total_episodes == 4

    def test_two_handles_show_the_same(self, store: Store) -> None:
        one, two = store.agent_memory(AGENT), store.agent_memory(AGENT)
        id_ = one.store_episode(at(0))
        assert ids_of(two.get_recent_episodes()) == [id_]
        two.update_episode(id_, content={"text": "changed"})
        assert texts(one.get_recent_episodes()) == ["changed"]
        assert one.delete_episode(id_)
        assert two.get_recent_episodes() == []
        assert two.get_episode(id_) is None
        assert two.get_statistics().total_episodes == 0
