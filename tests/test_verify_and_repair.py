"""verify() names whatever is wrong with a store; repair() mends what is derived and never touches what is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qilbee_core import (
    AgentMemory,
    CorruptRecordError,
    DataError,
    Delete,
    DeleteRange,
    Episode,
    Operation,
    Plan,
    Put,
    Settings,
    Snapshot,
    StorageError,
    Store,
    WriteBatch,
    open_store,
)
from qilbee_core.envelope import frame, unframe
from qilbee_core.ids import draw_id, parse_id
from qilbee_core.keys import AgentKeys, Space, catalog_key, range_of
from qilbee_core.memory import commit, repair, resident
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, change_payload, parse_change
from qilbee_core.memory.state import State, decode_state, first_state
from qilbee_core.memory.undo import decode_undo
from qilbee_core.memory.verify import INVARIANTS, VerifyReport

BOT = AgentKeys("bot")
GHOST = AgentKeys("ghost")
START = datetime(2026, 3, 1, tzinfo=UTC)
LATER_ON = datetime(2099, 1, 1, tzinfo=UTC)


# --- a store with some of everything


class ForgetTrivia:
    """A consolidation policy."""

    name = "test.trivia"

    def plan(self, episodes: Sequence[Episode], *, now: datetime) -> Plan:
        return Plan(forget=[episode.id for episode in episodes if episode.content == {"observation": "trivial"}])


def fill(memory: AgentMemory) -> None:
    """Ten episodes: of every memory type, some weak, boosted, pinned or expiring, one with three earlier versions.

    And one that a consolidation took away.
    """
    agent_id = memory.agent_id
    for number, memory_type in enumerate(("episodic", "semantic", "procedural", "factual") * 2):
        episode = Episode.observation(
            agent_id,
            f"observation {number}",
            memory_type=memory_type,  # type: ignore[arg-type]
            relevance=1.0 if number < 4 else 0.3,
            event_time=START + timedelta(hours=number),
        )
        stored_id = memory.store_episode(episode, idempotency_key=f"key {number}" if number % 2 else None)
        if number == 2:
            for version in range(3):
                memory.update_episode(stored_id, content={"observation": f"version {version}"})
        if number in (1, 4, 5):
            memory.boost(stored_id)
        if number in (2, 4):
            memory.pin(stored_id)
    for pinned in (True, False):
        tea = Episode.conversation(agent_id, "Tea?", "Tea.", event_time=START - timedelta(days=9), expires_at=LATER_ON)
        if pinned:
            memory.pin(memory.store_episode(tea))
    memory.store_episode(tea)
    memory.store_episode(Episode.observation(agent_id, "trivial", event_time=START + timedelta(days=1)))
    memory.consolidate(ForgetTrivia())
    gone = memory.store_episode(Episode.observation(agent_id, "forgotten", event_time=START))
    memory.delete_episode(gone)  # which also stores the head


@pytest.fixture(scope="module", params=["ephemeral", "rocksdb"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, list[Put]]]:
    path = tmp_path_factory.mktemp("store") / "data"
    # Nothing is reinforced: what one test has read would be written while another counts the writes of a repair.
    chosen = Settings.load({"memory": {"reinforcement_share": 0.0}})
    options = {"backend": request.param, "durability": "async", "compression_scope": "value"}
    with open_store(chosen, data_path=path, **options) as opened:
        fill(opened.agent_memory("bot"))
        fill(opened.agent_memory("other"))
        yield opened, [Put(key, value) for key, value in opened._backend.scan()]


@pytest.fixture
def store(filled: tuple[Store, list[Put]]) -> Store:
    """The same store, filled as at first."""
    opened, pairs = filled
    write(opened, DeleteRange(b"", b"\xff" * 300), *pairs)
    return opened


def write(store: Store, *operations: Operation) -> None:
    """Behind the memory's back; what it has in RAM of its agents is forgotten."""
    store._backend.write(WriteBatch(operations))
    for agent in store._context.agents_in_use():
        store._context.forget(agent)


def rows(store: Store, space: Space, keys: AgentKeys = BOT) -> list[tuple[bytes, bytes]]:
    return list(store._backend.scan(*keys.range(space)))


def row(store: Store, space: Space, number: int = 0) -> tuple[bytes, bytes]:
    return rows(store, space)[number]


def everything(store: Store, agent_id: str = "bot") -> tuple[object, ...]:
    """All that can be asked of an agent's memory, as of one moment; the average is a float sum in any order."""
    memory = store.agent_memory(agent_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._context, "clock_ns", lambda: 1_900_000_000_000_000_000)
        episodes = list(memory.episodes())
        statistics = memory.get_statistics()
        return (
            replace(statistics, avg_relevance=round(statistics.avg_relevance, 9)),
            episodes,
            [(episode.transaction_time, episode.relevance) for episode in episodes],
            [memory.history(episode.id) for episode in episodes],
        )


def names(report: VerifyReport) -> set[str]:
    return {problem.invariant for problem in report.problems}


def flipped(value: bytes) -> bytes:
    return bytes((value[0] ^ 1, *value[1:]))


def sealed(store: Store, key: bytes, document: list[Any]) -> Put:
    return Put(key, store._context.records.seal(key, document))


def opened(store: Store, key: bytes, value: bytes) -> list[Any]:
    return list(store._context.records.open(key, value))


def head(store: Store) -> Head:
    value = store._backend.get(BOT.head)
    assert value is not None
    return Head.decode(BOT.head, value)


def head_with(**changes: object) -> Callable[[Store], list[Operation]]:
    def damage(store: Store) -> list[Operation]:
        changed = head(store)
        for name, value in changes.items():
            setattr(changed, name, value(changed) if callable(value) else value)
        return [Put(BOT.head, changed.encode(BOT.head))]

    return damage


def removed(space: Space, number: int = 0) -> Callable[[Store], list[Operation]]:
    return lambda store: [Delete(row(store, space, number)[0])]


def altered(space: Space, number: int = 0) -> Callable[[Store], list[Operation]]:
    def damage(store: Store) -> list[Operation]:
        key, value = row(store, space, number)
        return [Put(key, flipped(value) if value else b"\x00")]

    return damage


def catalog_entry(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Store], list[Operation]]:
    """Remove an entry, or change its JSON."""

    def damage(store: Store) -> list[Operation]:
        key = catalog_key(name)
        value = store._backend.get(key)
        assert value is not None
        return [Delete(key) if change is None else Put(key, frame(key, change(unframe(key, value))))]

    return damage


def catalog_entry_added(name: str, payload: bytes) -> Callable[[Store], list[Operation]]:
    return lambda store: [Put(catalog_key(name), frame(catalog_key(name), payload))]


def ghost_head(store: Store) -> list[Operation]:
    lie = Head()
    lie.types = {"observation": 3}
    return [Put(GHOST.head, lie.encode(GHOST.head))]


def document_with(position: int, value: object) -> Callable[[Store], list[Operation]]:
    """An episode's document with another value, under a good checksum."""

    def damage(store: Store) -> list[Operation]:
        key, record = row(store, Space.EPISODE, -1)
        fields = opened(store, key, record)
        full = [*fields, *[{}, 0, 1.0, 0, "", "", 0, 0][len(fields) - 3 :]]
        full[position] = value
        return [sealed(store, key, full)]

    return damage


def copied_episode(store: Store) -> list[Operation]:
    return [Put(BOT.episode(draw_id(0)), row(store, Space.EPISODE)[1])]


def added_episode(id_bytes: bytes, keys: AgentKeys = BOT) -> Callable[[Store], list[Operation]]:
    return lambda store: [sealed(store, keys.episode(id_bytes), ["note", {"text": "found"}, 7])]


def vitality_at(
    order: int | None = None, place: int | None = None, value: bytes = b""
) -> Callable[[Store], list[Operation]]:
    """A second place for an episode."""

    def damage(store: Store) -> list[Operation]:
        key, _ = row(store, Space.VITALITY)
        prefix = len(BOT.vitalities)
        there = BOT.vitality(key[prefix] if order is None else order, 7 if place is None else place, key[-16:])
        return [Put(there, value)]

    return damage


def updated_id(store: Store) -> bytes:
    return row(store, Space.HISTORY)[0][-24:-8]


def version_at(id_bytes: bytes | None, recorded_us: Callable[[list[int]], int]) -> Callable[[Store], list[Operation]]:
    """A version more, under a good checksum; ``recorded_us`` gets the times of those that are there."""

    def damage(store: Store) -> list[Operation]:
        times = [int.from_bytes(key[-8:], "big") for key, _ in rows(store, Space.HISTORY)]
        at = recorded_us(times)
        return [sealed(store, BOT.history(id_bytes or updated_id(store), at), ["note", {"text": "never"}, at])]

    return damage


def version_of_an_episode_without_any(store: Store) -> list[Operation]:
    return version_at(row(store, Space.EPISODE)[0][-16:], lambda times: 7)(store)


def version_with_another_time(store: Store) -> list[Operation]:
    key, value = row(store, Space.HISTORY, 1)
    fields = opened(store, key, value)
    fields[2] += 1
    return [sealed(store, key, fields)]


def mark_with(id_bytes: Callable[[Store], bytes], number: int = 0) -> Callable[[Store], list[Operation]]:
    def damage(store: Store) -> list[Operation]:
        key, _ = row(store, Space.KEY, number)
        return [Put(key, frame(key, id_bytes(store)))]

    return damage


def mark_added(id_bytes: Callable[[Store], bytes]) -> Callable[[Store], list[Operation]]:
    key = BOT.idempotency_key(b"never was a key!")
    return lambda store: [Put(key, frame(key, id_bytes(store)))]


def change_with(
    number: int,
    *,
    kind: ChangeKind | None = None,
    later_us: int = 0,
    ids: Callable[[Store], list[bytes]] | None = None,
) -> Callable[[Store], list[Operation]]:
    """An entry of the change log with something else in it, under a good checksum."""

    def damage(store: Store) -> list[Operation]:
        key, value = row(store, Space.CHANGE, number)
        entry = parse_change(key, value)
        payload = change_payload(
            kind or entry.kind, entry.transaction_us + later_us, entry.ids if ids is None else ids(store)
        )
        return [Put(key, frame(key, payload))]

    return damage


def change_added(kind: ChangeKind, sequence: Callable[[Head], int]) -> Callable[[Store], list[Operation]]:
    def damage(store: Store) -> list[Operation]:
        key = BOT.change(sequence(head(store)))
        known = row(store, Space.EPISODE)[0][-16:]
        return [Put(key, frame(key, change_payload(kind, 1 << 62, [known])))]

    return damage


def change_of_no_kind(store: Store) -> list[Operation]:
    key, value = row(store, Space.CHANGE)
    return [Put(key, frame(key, b"\x09" + unframe(key, value)[1:]))]


def first_id(store: Store) -> bytes:
    return row(store, Space.EPISODE)[0][-16:]


def unknown_id(store: Store) -> bytes:
    return parse_id("0e30b9ee-5b68-8000-99c9-36e387babcde")


Damage = Callable[[Store], Sequence[Operation]]


def state_with(number: int, **changes: Any) -> Callable[[Store], list[Operation]]:
    """A state with something else in it, under a good checksum."""

    def damage(store: Store) -> list[Operation]:
        key, value = row(store, Space.STATE, number)
        return [Put(key, replace(decode_state(key, value), **changes).encode(key))]

    return damage


def undo_of(id_of: Callable[[Store], bytes]) -> Callable[[Store], list[Operation]]:
    """Undo data that name one episode more."""

    def damage(store: Store) -> list[Operation]:
        key, value = row(store, Space.PLAN)
        undo = decode_undo(key, value)
        return [Put(key, replace(undo, superseded=undo.superseded + id_of(store)).encode(key))]

    return damage


def state_that_says_nothing_new(store: Store) -> list[Operation]:
    with_state = {key[-16:] for key, _ in rows(store, Space.STATE)}
    key, value = next(pair for pair in rows(store, Space.EPISODE) if pair[0][-16:] not in with_state)
    document = EpisodeDocument.from_fields(opened(store, key, value))
    there = BOT.state(key[-16:])
    return [Put(there, first_state(document).encode(there))]


def expiring_id(store: Store) -> bytes:
    return row(store, Space.EXPIRY)[0][-16:]


def expiry_of_what_is_pinned(store: Store) -> list[Operation]:
    pinned = next(key[-16:] for key, _ in rows(store, Space.EPISODE) if key[-16:] != expiring_id(store))
    assert decode_state(BOT.state(pinned), store._backend.get(BOT.state(pinned)) or b"").pinned
    expires_us = int.from_bytes(row(store, Space.EXPIRY)[0][-24:-16], "big")
    return [Put(BOT.expiry(expires_us, pinned), b"")]


# What is done behind the memory's back, what verify() must say, and nothing else.
DERIVED: dict[str, tuple[Damage, set[str]]] = {
    "header removed": (catalog_entry("header", None), {"catalog-entry-missing"}),
    "tag removed": (catalog_entry("serializer/1", None), {"catalog-entry-missing"}),
    "order removed": (catalog_entry("order/1", None), {"catalog-entry-missing"}),
    "header altered": (catalog_entry("header", lambda json: json.replace(b":1,", b":2,")), {"catalog-entry-altered"}),
    "header damaged": (lambda store: [Put(catalog_key("header"), b"?")], {"catalog-entry-altered"}),
    "tag altered": (catalog_entry("codec/1", lambda json: json.replace(b"lz4", b"zst")), {"catalog-entry-altered"}),
    "order altered": (catalog_entry("order/0", lambda json: json.replace(b"25", b"26")), {"catalog-entry-altered"}),
    "head removed": (lambda store: [Delete(BOT.head)], {"head-missing"}),
    "head altered": (lambda store: [Put(BOT.head, flipped(store._backend.get(BOT.head) or b""))], {"head-corrupt"}),
    "head emptied": (lambda store: [Put(BOT.head, b"")], {"head-corrupt"}),
    "head of no form": (lambda store: [Put(BOT.head, frame(BOT.head, b"\x90"))], {"head-corrupt"}),
    "head of another agent": (
        lambda store: [Put(BOT.head, store._backend.get(AgentKeys("other").head) or b"")],
        {"head-corrupt"},
    ),
    "head added": (ghost_head, {"head-counts"}),
    "damaged head added": (lambda store: [Put(GHOST.head, b"?")], {"head-corrupt"}),
    "types wrong": (head_with(types={"observation": 9}), {"head-counts"}),
    "bytes wrong": (head_with(record_bytes=lambda head: head.record_bytes + 1), {"head-counts"}),
    "tallies wrong": (head_with(tallies={}), {"head-counts"}),
    "newest id wrong": (head_with(newest_id=bytes(16)), {"head-clocks"}),
    "head's time wrong": (head_with(transaction_us=7), {"head-clocks"}),
    "sequence too high": (head_with(sequence=lambda head: head.sequence + 1), {"change-order"}),
    "sequence too low": (head_with(sequence=lambda head: head.sequence - 1), {"head-corrupt"}),
    "trimmed too high": (head_with(trimmed=lambda head: head.trimmed + 1), {"change-order"}),
    "place removed": (removed(Space.VITALITY, 3), {"vitality-missing"}),
    "place altered": (altered(Space.VITALITY), {"vitality-wrong"}),
    "second place": (vitality_at(place=-7), {"vitality-wrong"}),
    "place in another order": (vitality_at(order=3), {"vitality-wrong"}),
    "place in no order": (vitality_at(order=200), {"vitality-wrong"}),
    "place of no episode": (lambda store: [Put(BOT.vitality(0, 7, draw_id(0)), b"")], {"vitality-orphan"}),
    "place of no agent": (lambda store: [Put(GHOST.vitality(0, 7, draw_id(0)), b"")], {"vitality-orphan"}),
    "state that says nothing new": (state_that_says_nothing_new, {"state-wrong", "head-counts"}),
    "state of no episode": (
        lambda store: [Put(BOT.state(unknown_id(store)), State(0.5, 7).encode(BOT.state(unknown_id(store))))],
        {"state-orphan"},
    ),
    "state of no agent": (
        lambda store: [Put(GHOST.state(unknown_id(store)), State(0.5, 7).encode(GHOST.state(unknown_id(store))))],
        {"state-orphan"},
    ),
    "states wrong": (head_with(states=1), {"head-counts"}),
    "expiry removed": (removed(Space.EXPIRY), {"expiry-missing"}),
    "expiry altered": (altered(Space.EXPIRY), {"expiry-wrong"}),
    "expiry at another time": (lambda store: [Put(BOT.expiry(7, expiring_id(store)), b"")], {"expiry-wrong"}),
    "expiry of what does not expire": (lambda store: [Put(BOT.expiry(7, updated_id(store)), b"")], {"expiry-wrong"}),
    "expiry of what is pinned": (expiry_of_what_is_pinned, {"expiry-wrong"}),
    "expiry of no episode": (lambda store: [Put(BOT.expiry(7, unknown_id(store)), b"")], {"expiry-orphan"}),
    "expiry of no agent": (lambda store: [Put(GHOST.expiry(7, unknown_id(store)), b"")], {"expiry-orphan"}),
    "expiry of the head too late": (head_with(expiry_us=lambda head: head.expiry_us + 1), {"head-clocks"}),
    "mark removed": (removed(Space.KEY), {"mark-missing"}),
    "mark altered": (altered(Space.KEY), {"mark-corrupt"}),
    "mark of another episode": (mark_with(first_id), {"mark-orphan"}),
    "mark of no episode": (mark_with(unknown_id), {"mark-orphan"}),
    "mark of no id": (mark_with(lambda store: b"short"), {"mark-orphan"}),
    "mark added": (mark_added(first_id), {"mark-orphan"}),
    "mark of no episode added": (mark_added(unknown_id), {"mark-orphan"}),
    "first change removed": (removed(Space.CHANGE, 0), {"change-order"}),
    "change removed": (removed(Space.CHANGE, 4), {"change-order"}),
    "change altered": (altered(Space.CHANGE, 4), {"change-corrupt"}),
    "change of no kind": (change_of_no_kind, {"change-corrupt"}),
    "change earlier than the last": (change_with(4, later_us=-(10**12)), {"change-wrong"}),
    "change later than the next": (change_with(4, later_us=10**12), {"change-wrong"}),
    "change deletes what is there": (change_with(7, kind=ChangeKind.DELETE), {"change-wrong"}),
    "change before the first": (change_added(ChangeKind.STORE, lambda head: 0), {"change-order", "change-wrong"}),
    "store after the last": (change_added(ChangeKind.STORE, lambda head: head.sequence + 1), {"head-counts"}),
    "delete after the last": (
        change_added(ChangeKind.DELETE, lambda head: head.sequence + 1),
        {"head-corrupt", "change-wrong"},
    ),
    "change of no agent": (lambda store: [Put(GHOST.change(1), b"?")], {"change-corrupt"}),
}

# The same for what cannot be made anew, and what verify() still says after repair().
TRUTH: dict[str, tuple[Damage, set[str], set[str]]] = {
    "entry of no kind added": (
        catalog_entry_added("zebra", b"{}"),
        {"catalog-entry-unknown"},
        {"catalog-entry-unknown"},
    ),
    "tag added": (
        catalog_entry_added("codec/9", b'{"name":"acme.fast","distribution":"acme"}'),
        {"catalog-entry-unknown"},
        {"catalog-entry-unknown"},
    ),
    "order added": (
        catalog_entry_added("order/9", b'{"memory_type":"episodic","half_life_us":7}'),
        {"catalog-entry-unknown"},
        {"catalog-entry-unknown"},
    ),
    "episode removed": (
        removed(Space.EPISODE, 3),
        {"episode-missing", "head-counts", "vitality-orphan", "mark-orphan", "state-orphan"},
        set(),
    ),
    "episode with versions removed": (
        lambda store: [Delete(BOT.episode(updated_id(store)))],
        {"episode-missing", "head-counts", "vitality-orphan", "history-orphan", "state-orphan"},
        {"history-orphan"},
    ),
    "episode altered": (altered(Space.EPISODE, 2), {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "episode emptied": (
        lambda store: [Put(row(store, Space.EPISODE, 2)[0], b"")],
        {"record-corrupt", "head-counts"},
        {"record-corrupt"},
    ),
    "episode under another id": (copied_episode, {"record-corrupt"}, {"record-corrupt"}),
    "episode under no id": (added_episode(b"\xff" * 16), {"record-corrupt", "head-clocks"}, {"record-corrupt"}),
    "episode of no memory type": (document_with(4, 9), {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "episode of no strength": (document_with(5, "x"), {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "episode with no digest": (document_with(7, "?"), {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "episode of no form": (
        lambda store: [sealed(store, row(store, Space.EPISODE, -1)[0], ["note"])],
        {"record-corrupt", "head-counts"},
        {"record-corrupt"},
    ),
    "state altered": (altered(Space.STATE), {"state-corrupt"}, set()),
    "state emptied": (lambda store: [Put(row(store, Space.STATE)[0], b"")], {"state-corrupt"}, set()),
    "state stronger than can be": (state_with(0, strength=1.5), {"state-corrupt"}, set()),
    "state of no time": (state_with(0, reinforced_us=0), {"state-corrupt"}, set()),
    "state of another episode": (
        lambda store: [Put(row(store, Space.STATE)[0], row(store, Space.STATE, 1)[1])],
        {"state-corrupt"},
        set(),
    ),
    "undo data altered": (altered(Space.PLAN), {"undo-corrupt"}, set()),
    "undo data emptied": (lambda store: [Put(row(store, Space.PLAN)[0], b"")], {"undo-corrupt"}, set()),
    "undo data of what is there": (undo_of(first_id), {"undo-orphan"}, set()),
    "undo data of what never was": (undo_of(unknown_id), {"undo-orphan"}, set()),
    "undo data of another time": (
        lambda store: [
            Put(key := BOT.undo(7), decode_undo(*row(store, Space.PLAN)).encode(key)),
        ],
        {"undo-orphan"},
        set(),
    ),
    "newest version removed": (removed(Space.HISTORY, 2), {"history-missing"}, {"history-missing"}),
    "version between removed": (removed(Space.HISTORY, 1), {"history-missing"}, {"history-missing"}),
    "oldest version removed": (removed(Space.HISTORY, 0), {"history-missing"}, {"history-missing"}),
    "version altered": (altered(Space.HISTORY, 1), {"record-corrupt"}, {"record-corrupt"}),
    "version with another time": (version_with_another_time, {"history-wrong"}, {"history-wrong"}),
    "version of what has none": (version_of_an_episode_without_any, {"history-wrong"}, {"history-wrong"}),
    "version above the newest": (
        version_at(None, lambda times: times[-1] + 1),
        {"history-wrong"},
        {"history-wrong"},
    ),
    "version between two": (version_at(None, lambda times: times[1] + 1), {"history-wrong"}, {"history-wrong"}),
    "version below the oldest": (version_at(None, lambda times: 7), {"history-wrong"}, {"history-wrong"}),
    "version of no episode": (
        version_at(draw_id(0), lambda times: 7),
        {"history-orphan"},
        {"history-orphan"},
    ),
}


def test_a_store_with_some_of_everything_is_clean(store: Store) -> None:
    report = store.verify()
    assert report.ok
    assert (report.agents, report.episodes) == (2, 20)
    live = {space for space in Space if space not in (Space.CATALOG, Space.TERMS, Space.ACCOUNT, Space.VECTOR)}
    assert all(len(rows(store, space)) >= 1 for space in live)


@pytest.mark.parametrize("damage", DERIVED)
def test_what_is_derived_and_wrong_is_named_and_mended(store: Store, damage: str) -> None:
    make, expected = DERIVED[damage]
    whole, other = everything(store), everything(store, "other")
    write(store, *make(store))
    report = store.verify()
    assert names(report) == expected
    assert all(problem.derived for problem in report.problems)

    repaired = store.repair()
    assert repaired.before == report
    assert repaired.after == store.verify()
    assert repaired.after.ok
    assert repaired.episodes == 20
    assert (everything(store), everything(store, "other")) == (whole, other)
    assert store.agents() == ["bot", "other"]


@pytest.mark.parametrize("damage", TRUTH)
def test_what_is_true_and_lost_is_named_and_all_else_is_kept(store: Store, damage: str) -> None:
    make, expected, left = TRUTH[damage]
    before = {space: dict(rows(store, space)) for space in (Space.EPISODE, Space.HISTORY)}
    other = everything(store, "other")
    write(store, *make(store))
    damaged = {space: dict(rows(store, space)) for space in before}
    report = store.verify()
    assert names(report) == expected

    repaired = store.repair()
    assert names(repaired.before) == expected
    assert names(repaired.after) == left
    assert {space: dict(rows(store, space)) for space in before} == damaged
    assert everything(store, "other") == other
    # Whatever was not touched is read as before.
    memory = store.agent_memory("bot")
    untouched = [key for key, value in before[Space.EPISODE].items() if damaged[Space.EPISODE].get(key) == value]
    assert len(untouched) >= 8
    for key in untouched:
        id_bytes = key[-16:]
        assert Put(key, before[Space.EPISODE][key]) == Put(key, store._backend.get(key) or b"")
        assert memory.get_episode(Episode("bot", "", {}, id=as_text(id_bytes)).id) is not None


def test_an_episode_of_a_memory_type_of_a_later_release_is_a_data_error_to_whoever_reads_it(store: Store) -> None:
    write(store, *document_with(4, 9)(store))
    memory = store.agent_memory("bot")
    ids = [as_text(key[-16:]) for key, _ in rows(store, Space.EPISODE)]
    assert all(memory.get_episode(known) is not None for known in ids[:-1])
    with pytest.raises(DataError, match="memory type"):
        memory.get_episode(ids[-1])


def as_text(id_bytes: bytes) -> str:
    text = id_bytes.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def test_every_invariant_has_a_case_here() -> None:
    covered = {name for _, expected in DERIVED.values() for name in expected}
    covered |= {name for _, expected, _ in TRUTH.values() for name in expected}
    elsewhere = {"engine-damaged", "key-unknown", "key-malformed", "record-unreadable"}
    elsewhere |= {"account-corrupt"}  # tests/test_account_rows.py
    elsewhere |= {"terms-missing", "terms-orphan", "terms-wrong", "terms-cursor"}  # tests/search/test_store_search.py
    elsewhere |= {name for name in INVARIANTS if name.startswith("vector-")}  # tests/search/test_embedding.py
    assert covered | elsewhere == set(INVARIANTS)
    assert not covered & elsewhere


def test_a_problem_says_where_it_is(store: Store) -> None:
    key, _ = row(store, Space.EPISODE, 2)
    write(store, Delete(key))
    problems = {problem.invariant: problem for problem in store.verify().problems}
    lost = problems["episode-missing"]
    assert (lost.family, lost.agent_id, lost.key, lost.derived) == ("EPISODE", "bot", key, False)
    assert as_text(key[-16:]) in lost.message
    assert problems["vitality-orphan"].key[-16:] == key[-16:]
    assert (problems["head-counts"].family, problems["head-counts"].key) == ("AGENT", BOT.head)


# --- strangers

MALFORMED = [
    *(BOT.prefix(space) + b"short" for space in Space if space not in (Space.CATALOG, Space.ACCOUNT)),
    BOT.episodes + bytes(17),
    bytes((Space.EPISODE,)),
    bytes((Space.EPISODE, 0)),
    bytes((Space.EPISODE, 1)) + b"/" + bytes(16),
    bytes((Space.EPISODE, 2)) + b"\xff\xff" + bytes(16),
    bytes((Space.AGENT, 3)) + b"e\xcc\x81",  # not in NFC
    bytes((Space.AGENT, 9)) + b"bot",  # shorter than it says
    bytes((Space.ACCOUNT,)),
    bytes((Space.ACCOUNT,)) + b"\xff",
]


@pytest.mark.parametrize(
    "key", [b"", b"\x00", b"\x02x", b"\x0f", b"\x11\x03bot", b"\x42", b"\x71", b"\xff\xff"], ids=ascii
)
def test_a_key_of_no_family_is_named_and_left_alone(store: Store, key: bytes) -> None:
    write(store, Put(key, b"foreign"))
    report = store.verify()
    assert [(problem.invariant, problem.family, problem.agent_id, problem.key) for problem in report.problems] == [
        ("key-unknown", "", None, key)
    ]
    assert names(store.repair().after) == {"key-unknown"}
    assert store._backend.get(key) == b"foreign"


@pytest.mark.parametrize("key", MALFORMED, ids=ascii)
def test_a_key_that_is_not_of_its_familys_form_is_named(store: Store, key: bytes) -> None:
    whole = everything(store, "other")
    write(store, Put(key, b"malformed"))
    report = store.verify()
    assert [problem.key for problem in report.problems if problem.invariant == "key-malformed"] == [key]
    # Behind the last entry of the change log it is taken for one.
    assert names(report) - {"key-malformed"} == ({"head-corrupt"} if key == BOT.changes + b"short" else set())
    assert names(store.repair().after) <= {"key-malformed"}
    assert everything(store, "other") == whole


def test_every_first_byte_is_a_family_or_named(store: Store) -> None:
    strangers = [bytes((first,)) for first in range(256) if first not in set(Space)]
    write(store, *(Put(key, b"") for key in strangers))
    report = store.verify()
    assert sorted(problem.key for problem in report.problems) == strangers
    assert names(report) == {"key-unknown"}


def test_a_thousand_problems_are_kept_and_the_walk_still_ends(store: Store) -> None:
    write(store, *(Put(b"\xf0" + number.to_bytes(2, "big"), b"") for number in range(1500)))
    report = store.verify()
    assert len(report.problems) == 1000
    assert (report.agents, report.episodes, report.ok) == (2, 20, False)


# --- the engine, other plugins, other agents


class DamagedSnapshot:
    """A snapshot of an engine that cannot read one of its blocks."""

    def __init__(self, snapshot: Snapshot, damaged: tuple[bytes, bytes]) -> None:
        self._snapshot, self._damaged = snapshot, damaged

    def scan(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._snapshot.scan(start, stop, reverse=reverse):
            if self._damaged[0] <= key < self._damaged[1]:
                raise CorruptRecordError("block checksum mismatch")
            yield key, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)


@pytest.mark.parametrize("space", [Space.EPISODE, Space.HISTORY, Space.CHANGE], ids=lambda space: str(space.name))
def test_where_the_engine_cannot_read_on_that_is_named_and_the_rest_is_walked(
    store: Store, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = store._backend.snapshot
    monkeypatch.setattr(store._backend, "snapshot", lambda: DamagedSnapshot(take(), BOT.range(space)))
    report = store.verify()
    assert "engine-damaged" in names(report)
    assert any("block checksum" in problem.message for problem in report.problems)
    assert report.episodes >= (20 if space is not Space.EPISODE else 0)


def test_damage_to_one_agent_is_not_seen_by_another(store: Store) -> None:
    other = everything(store, "other")
    write(store, Delete(BOT.head), *removed(Space.EPISODE)(store), *altered(Space.CHANGE, 3)(store))
    report = store.verify()
    assert {problem.agent_id for problem in report.problems} == {"bot"}
    assert everything(store, "other") == other


def test_a_walk_sees_one_moment_whatever_is_written_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    take = store._backend.snapshot

    def take_and_write() -> Snapshot:
        snapshot = take()
        monkeypatch.setattr(store._backend, "snapshot", take)
        fill(store.agent_memory("bot"))
        fill(store.agent_memory("late"))
        return snapshot

    monkeypatch.setattr(store._backend, "snapshot", take_and_write)
    report = store.verify()
    assert (report.ok, report.agents, report.episodes) == (True, 2, 20)


# --- larger, and at every moment


@pytest.mark.parametrize("backend", ["ephemeral", "rocksdb"])
def test_a_store_of_three_agents_with_500_episodes_each_is_clean(tmp_path: Path, backend: str) -> None:
    with open_store(tmp_path / "data", backend=backend, durability="async") as store:
        for agent_id in ("a", "a:b", "\u6771\u4eac"):
            memory = store.agent_memory(agent_id)
            ids = []
            for number in range(520):
                episode = Episode.observation(agent_id, f"observation {number}", relevance=(number % 11) / 10)
                key = f"key {number}" if number % 7 == 0 else None
                ids.append(memory.store_episode(episode, idempotency_key=key))
            for stored_id in ids[::26]:
                memory.delete_episode(stored_id)
            for stored_id in ids[1::10]:
                memory.update_episode(stored_id, metadata={"seen": True})
        report = store.verify()
        assert (report.ok, report.agents, report.episodes) == (True, 3, 1500)


def test_a_store_is_clean_after_every_single_write_even_while_the_log_is_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (commit, resident):
        monkeypatch.setattr(module, "CHANGES_KEPT", 70)
    with open_store(tmp_path / "data", durability="async") as store:
        memory = store.agent_memory("bot")
        for number in range(230):
            stored_id = memory.store_episode(Episode.observation("bot", f"observation {number}"))
            if number == 20:
                memory.delete_episode(stored_id)
            if number % 5 == 0:
                assert store.verify().problems == [], f"after {number} stores"


def test_a_head_that_lags_behind_the_log_is_no_problem_and_survives_repair(tmp_path: Path) -> None:
    with open_store(tmp_path / "data", durability="async") as store:
        memory = store.agent_memory("bot")
        for number in range(40):
            memory.store_episode(Episode.observation("bot", f"observation {number}"))
        assert head(store).sequence < 40
        whole = everything(store)
        assert store.verify().ok
        assert store.repair().after.ok
        assert everything(store) == whole
        assert head(store).episodes == 40


def test_an_episode_that_is_lost_above_a_lagging_head_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    with open_store(tmp_path / "data", durability="async") as store:
        memory = store.agent_memory("bot")
        ids = [memory.store_episode(Episode.observation("bot", f"observation {number}")) for number in range(40)]
        write(store, Delete(BOT.episode(parse_id(ids[30]))))
        report = store.verify()
        assert names(report) == {"episode-missing", "vitality-orphan", "head-corrupt"}
        repaired = store.repair()
        assert (names(repaired.before), repaired.after.ok) == (names(report), True)
        assert [episode.id for episode in memory.episodes()] == [*ids[:30], *ids[31:]]
        assert memory.get_statistics().total_episodes == 39
        memory.store_episode(Episode.observation("bot", "goes on"))
        assert store.verify().ok


# --- repair, interrupted


def damage_everything(store: Store) -> None:
    write(
        store,
        Delete(catalog_key("order/0")),
        Delete(BOT.head),
        *(Delete(key) for key, _ in rows(store, Space.VITALITY)[::2]),
        *(Delete(key) for key, _ in rows(store, Space.KEY)[::2]),
        Put(BOT.vitality(0, 7, draw_id(0)), b""),
        *altered(Space.CHANGE, -1)(store),
    )


class Interrupted(Exception):  # noqa: N818  # not an error: the power went
    pass


@pytest.fixture
def interrupt(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Let ``n`` writes through and stop at the next; gives a list that counts them."""
    real = store._backend.write

    def after(n: int | None) -> list[int]:
        count = [0]

        def write(batch: WriteBatch) -> None:
            if count[0] == n:
                raise Interrupted
            real(batch)
            count[0] += 1

        monkeypatch.setattr(store._backend, "write", write)
        return count

    return after


def test_a_repair_that_is_interrupted_after_any_of_its_batches_can_be_run_again(
    store: Store, interrupt: Callable[[int | None], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_BATCH_OPERATIONS", 4)
    whole, other = everything(store), everything(store, "other")
    damage_everything(store)
    count = interrupt(None)
    assert store.repair().after.ok
    batches = count[0]
    assert batches > 8
    for n in range(batches):
        interrupt(None)
        store.agent_memory("bot").update_episode(next(store.agent_memory("bot").episodes()).id, metadata={"n": n})
        whole = everything(store)
        damage_everything(store)
        interrupt(n)
        with pytest.raises(Interrupted):
            store.repair()
        interrupt(None)
        assert not store.verify().ok or everything(store) == whole  # nothing is wrong without being named
        repaired = store.repair()
        assert repaired.after.ok
        assert repaired.episodes == 20
        assert (everything(store), everything(store, "other")) == (whole, other)


def test_an_interrupted_repair_of_a_sound_store_changes_no_answer(
    store: Store, interrupt: Callable[[int | None], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "_BATCH_OPERATIONS", 4)
    memory = store.agent_memory("bot")
    for number in range(5):  # on rocksdb the stored head lags behind these
        memory.store_episode(Episode.observation("bot", f"late {number}"))
    whole = everything(store)
    count = interrupt(None)
    assert store.repair().after.ok
    for n in range(count[0]):
        interrupt(n)
        with pytest.raises(Interrupted):
            store.repair()
        assert everything(store) == whole
        interrupt(None)
    assert store.repair().after.ok
    assert everything(store) == whole


def test_a_repaired_store_takes_writes_and_has_a_new_history(store: Store) -> None:
    before = head(store).generation
    damage_everything(store)
    store.repair()
    assert head(store).generation != before
    fill(store.agent_memory("new"))
    memory = store.agent_memory("bot")
    for number in range(20):
        memory.store_episode(Episode.observation("bot", f"after {number}"))
    assert store.verify().ok


def test_an_idempotency_key_holds_again_after_repair(store: Store) -> None:
    memory = store.agent_memory("bot")
    episode = Episode.observation("bot", "once")
    stored_id = memory.store_episode(episode, idempotency_key="once")
    write(store, *(Delete(key) for key, _ in rows(store, Space.KEY)))
    assert names(store.verify()) == {"mark-missing"}
    store.repair()
    again = Episode.observation("bot", "once", event_time=episode.event_time)
    assert memory.store_episode(again, idempotency_key="once") == stored_id
    assert store.verify().ok


@pytest.mark.parametrize("value", [None, b"?"], ids=["removed", "altered"])
def test_an_agent_whose_head_is_broken_can_still_be_cleared(store: Store, value: bytes | None) -> None:
    write(store, Delete(BOT.head) if value is None else Put(BOT.head, value))
    memory = store.agent_memory("bot")
    memory.clear()
    assert list(memory.episodes()) == []
    assert [key for space in Space if space is not Space.CATALOG for key, _ in rows(store, space)] == []
    assert range_of(BOT.head)[0] == BOT.head
    assert store.verify().ok


@pytest.mark.parametrize("are_readable", [True, False], ids=["retired", "unreadable"])
def test_an_agent_of_which_nothing_is_left_but_history_begins_no_new_head_before_repair(
    store: Store, are_readable: bool
) -> None:
    memory = store.agent_memory("bot")
    for episode in list(memory.episodes()):
        memory.invalidate(episode.id)
    kept = dict(rows(store, Space.HISTORY))
    broken = [] if are_readable else [Put(key, flipped(value)) for key, value in kept.items()]
    write(store, Delete(BOT.head), *broken)
    assert "head-missing" in names(store.verify())
    with pytest.raises(CorruptRecordError, match=r"no head: run repair\(\)"):
        memory.store_episode(Episode.observation("bot", "new"))
    store.repair()
    assert "head-missing" not in names(store.verify())
    memory.store_episode(Episode.observation("bot", "new"))
    assert rows(store, Space.HISTORY) == sorted({**kept, **{each.key: each.value for each in broken}}.items())
    assert store.verify().ok is are_readable
    write(store, Delete(BOT.head))
    memory.clear()
    assert rows(store, Space.HISTORY) == []


def test_a_store_that_takes_no_writes_refuses_repair_and_is_left_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_everything(store)
    before = list(store._backend.scan())

    def refuse(batch: WriteBatch) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(store._backend, "write", refuse)
    with pytest.raises(StorageError, match="read-only"):
        store.repair()
    monkeypatch.undo()
    assert list(store._backend.scan()) == before
