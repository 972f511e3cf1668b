"""No verb of one agent reaches another's episodes, whatever their ids look like."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable
from itertools import combinations, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qilbee_core import CorruptRecordError, Episode, InvalidError, Store
from qilbee_core.keys import AGENT_ID_BYTES_MAX, AgentKeys, Space, encode_agent_id, parse, range_of

PAIRS = 10_000
AGENTS = 220
AGENT_SPACES = [space for space in Space if space not in (Space.CATALOG, Space.ACCOUNT)]
FIELDS_BYTES = {
    Space.AGENT: 0,
    Space.EPISODE: 16,
    Space.STATE: 16,
    Space.HISTORY: 24,
    Space.VITALITY: 25,
    Space.EXPIRY: 24,
    Space.CHANGE: 8,
    Space.KEY: 16,
    Space.TERMS: 17,
    Space.VECTOR: 17,
    Space.PLAN: 8,
}

_CHARACTERS = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/")
"""What an id may be made of, but for ``.`` and ``..`` alone."""

_SEPARATORS = ":|,;.\\ -_~!#%&*?@'\"`$\u00a0\u200b\u200d\u2028\u202e\ufeff\ufffd\uffff\U0010ffff"
_WORDS = ["a", "b", "aa", "ab", "A", "0", "agent", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "A\u030a", "\u732b"]


def hostile_ids() -> list[str]:
    """Ids that are prefixes of each other, end in what another begins with, look alike, or are as long as allowed."""
    found = [*_WORDS, *_SEPARATORS.replace(".", "")]
    found += [f"{word}{separator}" for word in _WORDS[:6] for separator in _SEPARATORS]
    found += [f"{word}{separator}b" for word in _WORDS[:3] for separator in _SEPARATORS]
    found += [f"{separator}a" for separator in _SEPARATORS]
    # As long as the number of a length byte, of a space byte, of a character that another id begins with.
    found += ["a" * length for length in (16, 32, 33, 34, 48, 49, 64, 65, 97, 127, 128, 254, 255)]
    found += ["a" * 254 + "b", "\u00e9" * 127, "\u00e9" * 127 + "a", "\U0010ffff" * 63, "...", "..a", "%00", "%2e%2e"]
    found += [" " * length for length in (1, 2, 3, 31, 32)]
    found += ["DROP TABLE", "${jndi}", "../a".replace("/", "\u2215"), "\ud7a3", "\u1112\u1161\u11ab", "\ud55c"]
    return list(dict.fromkeys(found))


def pairs_of(ids: Iterable[str]) -> list[tuple[str, str]]:
    different = [(a, b) for a, b in combinations(ids, 2) if encode_agent_id(a) != encode_agent_id(b)]
    return random.Random(11).sample(different, PAIRS)


def keys_of(agent_id: str) -> list[bytes]:
    """The lowest and the highest key there can be in each family."""
    keys = AgentKeys(agent_id)
    return [
        keys.prefix(space) + byte * FIELDS_BYTES[space] for space in AGENT_SPACES for byte in (b"\x00", b"a", b"\xff")
    ]


class TestKeys:
    def test_no_key_of_one_agent_lies_in_a_range_of_another(self) -> None:
        ids = hostile_ids()
        ranges = {agent_id: [AgentKeys(agent_id).range(space) for space in AGENT_SPACES] for agent_id in ids}
        keys = {agent_id: keys_of(agent_id) for agent_id in ids}
        pairs = pairs_of(ids)
        assert len(pairs) == PAIRS
        crossed = [
            (a, b)
            for pair in pairs
            for a, b in (pair, pair[::-1])
            if any(start <= key < stop for start, stop in ranges[b] for key in keys[a])
        ]
        assert crossed == []

    def test_every_key_lies_in_the_ranges_of_its_agent_and_names_it(self) -> None:
        for agent_id in hostile_ids():
            for space in AGENT_SPACES:
                start, stop = AgentKeys(agent_id).range(space)
                for byte in (b"\x00", b"\xff"):
                    key = AgentKeys(agent_id).prefix(space) + byte * FIELDS_BYTES[space]
                    assert start <= key < stop
                    assert range_of(bytes((space,)))[0] <= key < range_of(bytes((space,)))[1]
                    parsed = parse(key)
                    assert (parsed.space, parsed.agent_id) == (space, unicodedata.normalize("NFC", agent_id))
                    assert parsed.fields == byte * FIELDS_BYTES[space]

    @settings(max_examples=100)
    @given(
        a=st.text(_CHARACTERS, min_size=1, max_size=8),
        b=st.text(_CHARACTERS, min_size=1, max_size=8),
        joint=st.text(_CHARACTERS, max_size=3),
    )
    def test_nor_do_any_two_ids_that_somebody_may_think_of(self, a: str, b: str, joint: str) -> None:
        b = a + joint + b
        try:
            ranges = [AgentKeys(agent_id).range(space) for agent_id in (a, b) for space in AGENT_SPACES]
        except InvalidError:
            assume(False)
        assume(encode_agent_id(a) != encode_agent_id(b))
        bounds = sorted(ranges)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(bounds))

    def test_forms_that_unicode_takes_for_equal_have_the_same_keys(self) -> None:
        for composed, decomposed in (
            ("caf\u00e9", "cafe\u0301"),
            ("\u212b", "A\u030a"),
            ("\ud55c", "\u1112\u1161\u11ab"),
        ):
            assert composed != decomposed
            assert keys_of(composed) == keys_of(decomposed)

    def test_forms_that_only_look_alike_have_others(self) -> None:
        for one, other in (
            ("a", "\uff41"),
            ("\ufb01", "fi"),
            ("bot", "bot\u200b"),
            ("bot", "Bot"),
            ("a b", "a\u00a0b"),
        ):
            assert set(keys_of(one)).isdisjoint(keys_of(other))

    @pytest.mark.parametrize(
        "key",
        [
            b"",
            b"\x00",
            b"\xff",
            b"\x20",
            b"\x20\x00",
            b"\x20\x05bot",
            b"\x20\x03bot" + bytes(15),
            b"\x20\x03b/t" + bytes(16),
            b"\x20\x02\xc3\x28" + bytes(16),  # not UTF-8
            b"\x20\x06cafe\xcc\x81" + bytes(16),  # not NFC
            b"\x10\x03bot\x00",
        ],
    )
    def test_a_key_of_no_known_form_is_corrupt(self, key: bytes) -> None:
        with pytest.raises(CorruptRecordError):
            parse(key)


@pytest.fixture
def agents(store: Store) -> dict[str, list[str]]:
    """Many agents that each have stored two episodes, one of them changed once; their ids by the agent's."""
    chosen = random.Random(7).sample(hostile_ids(), AGENTS // 2)
    chosen += [f"{agent_id}:{chosen[0]}"[:60] for agent_id in chosen if len(agent_id) < 20]
    agents = {unicodedata.normalize("NFC", agent_id): [""] for agent_id in chosen}
    for agent_id in agents:
        memory = store.agent_memory(agent_id)
        memory.get_recent_episodes()
        agents[agent_id] = [
            memory.store_episode(Episode(agent_id, "note", {"text": f"{word} of {agent_id}"}), idempotency_key=word)
            for word in ("first", "second")
        ]
        memory.update_episode(agents[agent_id][0], metadata={"agent": agent_id})
    assert len(agents) > 180
    return agents


def known_of(store: Store, agent_id: str) -> list[object]:
    """All that the verbs say of one agent."""
    memory = store.agent_memory(agent_id)
    statistics = memory.get_statistics()
    return [
        list(memory.episodes()),
        list(memory.episodes(reverse=True)),
        memory.get_recent_episodes(1000),
        memory.get_recent_episodes(1000, episode_type="note"),
        [memory.history(episode.id) for episode in memory.episodes()],
        (statistics.total_episodes, statistics.bytes, statistics.oldest_episode, statistics.newest_episode),
    ]


class TestStores:
    def test_each_agent_sees_its_own_and_nothing_else(self, store: Store, agents: dict[str, list[str]]) -> None:
        assert store.agents() == sorted(agents)
        for agent_id, ids in agents.items():
            forward, backward, newest, filtered, histories, figures = known_of(store, agent_id)
            texts = [episode.content["text"] for episode in store.agent_memory(agent_id).episodes()]
            assert texts == [f"first of {agent_id}", f"second of {agent_id}"]
            assert [episode.id for episode in store.agent_memory(agent_id).episodes()] == ids
            assert forward == newest[::-1] == filtered[::-1] == backward[::-1]  # type: ignore[index]
            assert [len(history) for history in histories] == [1, 0]  # type: ignore[attr-defined]
            assert figures[0] == 2  # type: ignore[index]

    def test_nobody_can_read_change_or_delete_by_anothers_id(self, store: Store, agents: dict[str, list[str]]) -> None:
        before = {agent_id: known_of(store, agent_id) for agent_id in agents}
        neighbours = sorted(agents)
        for agent_id, other in zip(neighbours, neighbours[1:] + neighbours[:1], strict=True):
            memory = store.agent_memory(agent_id)
            for id_ in agents[other]:
                assert memory.get_episode(id_) is None
                assert memory.get_episodes([id_]) == [None]
                assert memory.history(id_) == []
                assert memory.delete_episode(id_) is False
                with pytest.raises(LookupError):
                    memory.update_episode(id_, content={})
        assert {agent_id: known_of(store, agent_id) for agent_id in agents} == before
        assert store.verify().problems == []

    def test_a_clear_or_delete_of_some_leaves_the_others_as_they_are(
        self, store: Store, agents: dict[str, list[str]]
    ) -> None:
        names = list(agents)
        random.Random(5).shuffle(names)
        cleared, deleted, kept = names[::3], names[1::3], names[2::3]
        before = {agent_id: known_of(store, agent_id) for agent_id in kept}
        for agent_id in cleared:
            assert store.agent_memory(agent_id).clear().episodes == 2
        for agent_id in deleted:
            assert all(store.agent_memory(agent_id).delete_episode(id_) for id_ in agents[agent_id])
        assert {agent_id: known_of(store, agent_id) for agent_id in kept} == before
        for agent_id in cleared + deleted:
            assert known_of(store, agent_id)[:5] == [[], [], [], [], []]
            assert store.agent_memory(agent_id).get_statistics().total_episodes == 0
        assert store.agents() == sorted(deleted + kept)
        report = store.verify()
        assert (report.problems, report.episodes) == ([], 2 * len(kept))


CONTROL_CHARACTERS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))]
REFUSED = {
    "empty": "",
    "a dot": ".",
    "two dots": "..",
    "a slash": "/",
    "a slash within": "a/b",
    "a slash at the end": "a/",
    "a path": "../a",
    "NUL": "a\0b",
    "256 bytes": "a" * 256,
    "256 bytes in 128 characters": "\u00e9" * 128,
    "256 bytes only in its NFC form": "\u0344" * 64,
    "10,000 characters": "a" * 10_000,
    "a lone surrogate": "a\ud800",
    "bytes that are not UTF-8": b"a\xff".decode("utf-8", "surrogateescape"),
}
ALLOWED = ["...", ".a", "a.", " ", "a b", "%00", "%2f", "a\\b", "\u2215", "\u2028", "\ufffd", "a" * 255, "sales-agent"]
ALLOWED += ["\u0344" * 63, "caf\u00e9", "\U0001f916", "a:b", "C:", "CON", "null", "None", "__proto__", "0"]


class TestIds:
    @pytest.mark.parametrize("agent_id", REFUSED.values(), ids=REFUSED)
    def test_these_are_refused(self, store: Store, agent_id: str) -> None:
        with pytest.raises(InvalidError, match=r"agent id.*use 1 to 255 bytes"):
            store.agent_memory(agent_id)

    @pytest.mark.parametrize("engine", ["ephemeral"], scope="session")
    def test_so_is_every_control_character(self, store: Store) -> None:
        assert {unicodedata.category(character) for character in CONTROL_CHARACTERS} == {"Cc"}
        assert len(CONTROL_CHARACTERS) == 65
        for character in CONTROL_CHARACTERS:
            for agent_id in (character, f"a{character}", f"{character}a", f"a{character}b"):
                with pytest.raises(InvalidError, match=r"agent id.*holds"):
                    store.agent_memory(agent_id)

    @pytest.mark.parametrize("agent_id", ALLOWED)
    def test_these_are_allowed(self, store: Store, agent_id: str) -> None:
        memory = store.agent_memory(agent_id)
        id_ = memory.store_episode(Episode(agent_id, "note", {"text": agent_id}))
        read = memory.get_episode(id_)
        assert read is not None
        assert read.content == {"text": agent_id}
        assert store.agents() == [unicodedata.normalize("NFC", agent_id)]

    def test_a_refused_id_makes_no_agent(self, store: Store) -> None:
        for agent_id in REFUSED.values():
            with pytest.raises(InvalidError):
                store.agent_memory(agent_id)
        assert store.agents() == []

    def test_the_longest_is_255_bytes_after_unicode_has_composed_it(self) -> None:
        long, composed = "e\u0301" * 127, "\u00e9" * 127
        assert len(long.encode()) > AGENT_ID_BYTES_MAX
        assert encode_agent_id(long) == composed.encode()
