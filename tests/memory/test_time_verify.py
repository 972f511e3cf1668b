"""verify() names whatever is wrong with retired episodes and their versions; repair() mends what is derived of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from qilbee_core import Delete, Episode, MemorySettings, Operation, Put, Settings, Store, WriteBatch, open_store
from qilbee_core.envelope import frame
from qilbee_core.ids import format_id, parse_id
from qilbee_core.keys import AgentKeys, Space
from qilbee_core.memory.commit import Touched
from qilbee_core.memory.document import EpisodeDocument
from qilbee_core.memory.head import Head
from qilbee_core.memory.log import ChangeKind, change_payload
from qilbee_core.memory.state import State
from qilbee_core.memory.verify import VerifyReport

KEYS = AgentKeys("bot")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER_ON = datetime(2099, 1, 1, tzinfo=UTC)


def stored(hour: int) -> bytes:
    """The id of the episode that happened at that hour."""
    return parse_id(f"0e30c0{hour:02d}-0000-8000-9000-0000000000{hour:02d}")


PLAIN, BACK, PINNED, ENDED = map(stored, range(1, 5))
"""One that is there, one that was put back, a pinned one that was retired, one that was updated and then retired."""


def fill(store: Store) -> None:
    memory, operations = store.agent_memory("bot"), store._operations("bot")
    for id_bytes in (ENDED, PINNED, BACK, PLAIN):
        expires_at = LATER_ON if id_bytes in (ENDED, PINNED) else None
        key = f"key {id_bytes.hex()}" if id_bytes in (ENDED, PLAIN) else None
        episode = Episode("bot", "note", {"text": "first"}, id=format_id(id_bytes), expires_at=expires_at)
        memory.store_episode(episode, idempotency_key=key)
    memory.update_episode(format_id(ENDED), content={"text": "second"})
    memory.pin(format_id(PINNED))
    for id_bytes in (PINNED, BACK):
        assert memory.invalidate(format_id(id_bytes))

    def supersede(head: Head, batch: list[Operation]) -> tuple[None, Touched]:
        found = operations._find(ENDED)
        assert found is not None
        operations._retire(head, batch, found, PLAIN)
        return None, {ENDED: None}

    def put_back(head: Head, batch: list[Operation]) -> tuple[None, Touched]:
        found = operations._find_kept(BACK)
        assert found is not None
        return None, {BACK: operations._put_back(head, batch, found)}

    operations._commit(ChangeKind.RETIRE, put_back)
    operations._commit(ChangeKind.RETIRE, supersede)


@pytest.fixture(scope="module", params=["ephemeral", "rocksdb"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, list[Put]]]:
    chosen = Settings(memory=MemorySettings(reinforcement_share=0))
    path = tmp_path_factory.mktemp("store") / "data"
    with open_store(chosen, data_path=path, backend=request.param, durability="async") as opened:
        fill(opened)
        yield opened, [Put(key, value) for key, value in opened._backend.scan()]


@pytest.fixture
def store(filled: tuple[Store, list[Put]]) -> Store:
    """The same store, filled as at first."""
    opened, pairs = filled
    write(opened, *(Delete(key) for key, _ in opened._backend.scan()), *pairs)
    return opened


def write(store: Store, *operations: Operation) -> None:
    """Behind the memory's back; what it has in RAM of its agents is forgotten."""
    store._backend.write(WriteBatch(operations))
    for agent in store._context.agents_in_use():
        store._context.forget(agent)


def rows(store: Store, space: Space, id_bytes: bytes) -> list[tuple[bytes, bytes]]:
    return [row for row in store._backend.scan(*KEYS.range(space)) if id_bytes in row[0]]


def everything(store: Store) -> list[object]:
    """All that can be asked of the past and the present, but for relevance, which moves on."""
    memory = store.agent_memory("bot")
    told: list[object] = [memory.history(format_id(id_bytes)) for id_bytes in (ENDED, PINNED, BACK, PLAIN)]
    moments = [each.ended_at for versions in told for each in versions]  # type: ignore[attr-defined]
    for moment in sorted(moments):
        told += [list(memory.episodes(as_of=moment + timedelta(microseconds=shift))) for shift in (-1, 0)]
    return [*told, list(memory.episodes())]


def names(report: VerifyReport) -> set[str]:
    return {problem.invariant for problem in report.problems}


Damage = Callable[[Store], Sequence[Operation]]


def removed(space: Space, id_bytes: bytes, number: int = 0) -> Damage:
    return lambda store: [Delete(rows(store, space, id_bytes)[number][0])]


def version_with(id_bytes: bytes, **changes: object) -> Damage:
    """The newest version in the history with something else in it, under a good checksum."""

    def damage(store: Store) -> list[Operation]:
        key, value = rows(store, Space.HISTORY, id_bytes)[-1]
        document = EpisodeDocument.from_fields(store._context.records.open(key, value))
        changed = {name: value(document) if callable(value) else value for name, value in changes.items()}
        return [Put(key, store._context.records.seal(key, replace(document, **changed).fields()))]

    return damage


def retired_in_its_record(store: Store) -> list[Operation]:
    key = KEYS.episode(PLAIN)
    fields = list(store._context.records.open(key, store._backend.get(key) or b""))
    document = replace(EpisodeDocument.from_fields(fields), ended_us=1 << 60)
    return [Put(key, store._context.records.seal(key, document.fields()))]


def head_with(**changes: object) -> Damage:
    def damage(store: Store) -> list[Operation]:
        head = Head.decode(KEYS.head, store._backend.get(KEYS.head) or b"")
        for name, value in changes.items():
            setattr(head, name, value(head) if callable(value) else value)
        return [Put(KEYS.head, head.encode(KEYS.head))]

    return damage


def last_change(kind: ChangeKind, id_bytes: bytes) -> Damage:
    """What the newest entry of the change log says, instead."""

    def damage(store: Store) -> list[Operation]:
        key = KEYS.change(Head.decode(KEYS.head, store._backend.get(KEYS.head) or b"").sequence)
        return [Put(key, frame(key, change_payload(kind, 1 << 61, [id_bytes])))]

    return damage


# What is done behind the memory's back, and what verify() must say, and nothing else.
DERIVED: dict[str, tuple[Damage, set[str]]] = {
    "end removed": (removed(Space.EXPIRY, ENDED), {"expiry-missing"}),
    "end at another time": (lambda store: [Put(KEYS.expiry(7, ENDED), b"")], {"expiry-wrong"}),
    "end of what was pinned": (
        lambda store: [Put(KEYS.expiry(int(LATER_ON.timestamp() * 1_000_000), PINNED), b"")],
        {"expiry-wrong"},
    ),
    "mark removed": (
        lambda store: [Delete(key) for key, value in store._backend.scan(*KEYS.range(Space.KEY)) if ENDED in value],
        {"mark-missing"},
    ),
    "state left": (
        lambda store: [Put(KEYS.state(ENDED), State(0.5, 7).encode(KEYS.state(ENDED)))],
        {"state-orphan"},
    ),
    "place left": (lambda store: [Put(KEYS.vitality(0, 7, ENDED), b"")], {"vitality-orphan"}),
    "one retired too many": (head_with(retired=3), {"head-counts"}),
    "none retired": (head_with(retired=0), {"head-counts"}),
    "head's time before the end": (head_with(transaction_us=lambda head: head.transaction_us - 1), {"head-clocks"}),
    "newest id below that of a retired one": (head_with(newest_id=PINNED), {"head-clocks"}),
    "earliest end after that of a retired one": (head_with(expiry_us=1 << 62), {"head-clocks"}),
    "head removed": (lambda store: [Delete(KEYS.head)], {"head-missing"}),
    "deleted by the log": (last_change(ChangeKind.DELETE, ENDED), {"change-wrong"}),
    "still there by the log": (last_change(ChangeKind.STORE, ENDED), {"episode-missing"}),
    "retired by the log and never known": (last_change(ChangeKind.RETIRE, stored(9)), {"episode-missing"}),
}

# The same for what cannot be made anew, and what verify() still says after repair().
TRUTH: dict[str, tuple[Damage, set[str], set[str]]] = {
    "all versions removed": (
        lambda store: [Delete(key) for key, _ in rows(store, Space.HISTORY, ENDED)],
        {"episode-missing", "head-counts", "expiry-orphan", "mark-orphan"},
        set(),
    ),
    "newest version removed": (
        removed(Space.HISTORY, ENDED, -1),
        {"episode-missing", "head-counts", "expiry-orphan", "mark-orphan", "history-orphan"},
        {"history-orphan"},
    ),
    "older version removed": (removed(Space.HISTORY, ENDED), {"history-missing"}, {"history-missing"}),
    "newest version altered": (
        lambda store: [Put(rows(store, Space.HISTORY, ENDED)[-1][0], b"?")],
        {"record-corrupt", "head-counts"},
        {"record-corrupt"},
    ),
    "never ended": (
        version_with(ENDED, ended_us=0),
        {"episode-missing", "head-counts", "expiry-orphan", "mark-orphan", "history-orphan"},
        {"history-orphan"},
    ),
    "ended before it began": (version_with(PINNED, ended_us=7), {"history-wrong"}, {"history-wrong"}),
    "ended after it was put back": (
        version_with(BACK, ended_us=lambda document: document.ended_us + 10**9),
        {"history-wrong"},
        {"history-wrong"},
    ),
    "superseded by no id": (
        version_with(ENDED, superseded_by="nobody"),
        {"record-corrupt", "head-counts"},
        {"record-corrupt"},
    ),
    "ended at no time": (version_with(ENDED, ended_us="x"), {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "retired in its record": (retired_in_its_record, {"record-corrupt", "head-counts"}, {"record-corrupt"}),
    "version that was put back removed": (removed(Space.HISTORY, BACK), {"history-missing"}, {"history-missing"}),
}


def test_a_store_with_retired_episodes_is_clean(store: Store) -> None:
    assert store.verify().problems == []
    assert [len(rows(store, Space.HISTORY, each)) for each in (ENDED, PINNED, BACK, PLAIN)] == [2, 1, 1, 0]
    assert [bool(rows(store, Space.EPISODE, each)) for each in (ENDED, PINNED, BACK, PLAIN)] == [
        False,
        False,
        True,
        True,
    ]
    assert [bool(rows(store, Space.EXPIRY, each)) for each in (ENDED, PINNED)] == [True, False]


@pytest.mark.parametrize("damage", DERIVED)
def test_what_is_derived_and_wrong_is_named_and_mended(store: Store, damage: str) -> None:
    make, expected = DERIVED[damage]
    whole = everything(store)
    write(store, *make(store))
    assert names(store.verify()) == expected
    assert store.repair().after.problems == []
    assert everything(store) == whole
    memory = store.agent_memory("bot")
    first = Episode("bot", "note", {"text": "first"}, id=format_id(ENDED))
    assert memory.store_episode(first) == first.id  # it is still known, by its id and by its key
    again = Episode("bot", "note", {"text": "first"})
    assert memory.store_episode(again, idempotency_key=f"key {ENDED.hex()}") == first.id
    assert everything(store) == whole


@pytest.mark.parametrize("damage", TRUTH)
def test_what_is_true_and_lost_is_named_and_all_else_is_kept(store: Store, damage: str) -> None:
    make, expected, left = TRUTH[damage]
    write(store, *make(store))
    damaged = {space: list(store._backend.scan(*KEYS.range(space))) for space in (Space.EPISODE, Space.HISTORY)}
    assert names(store.verify()) == expected
    assert names(store.repair().after) == left
    assert {space: list(store._backend.scan(*KEYS.range(space))) for space in damaged} == damaged
    memory = store.agent_memory("bot")
    tea = Episode("bot", "note", {"text": "tea"})
    assert memory.get_episode(memory.store_episode(tea)) == tea  # what is broken of one is in the way of no other
    assert memory.invalidate(tea.id)
    assert [version.content for version in memory.history(tea.id)] == [{"text": "tea"}]
    assert names(store.verify()) == left
