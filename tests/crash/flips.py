"""Bits that flip in the files of a store, and files that are cut short or gone: never a silent loss."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from shared.open_files import copy_open_store

from qilbee_core import QilbeeError, Store, open_store
from qilbee_core.watermark import WATERMARK_NAME, read_slot

from .oracle import Course, State, observe, send

__all__ = ["Damage", "Image", "damage_everywhere", "make_image"]

_AGENTS = ("one", "two")
_STEPS = 60
_WATERMARK_SECONDS_MAX = 60.0
_FLIPS_OF_A_FILE_MIN = 16

Verdict = Literal["noticed", "harmless", "silent"]


class Image(NamedTuple):
    """A store as the death of its process left it, with everything in it synced."""

    directory: Path
    settings: Mapping[str, Any]
    seed: int


class Damage(NamedTuple):
    """What was done to which file, and what came of it."""

    file: str
    what: str
    verdict: Verdict
    told: str


class _Seen(NamedTuple):
    states: dict[str, State]
    histories: dict[str, list[str]]


def make_image(directory: Path, settings: Mapping[str, Any], *, seed: int = 1) -> Image:
    """Tables, manifest and a log with content: half of the steps, compact, the other half, flush, and no close."""
    courses = {agent: Course(agent, seed) for agent in _AGENTS}
    with open_store(directory / "live", **settings) as store:
        for index in range(_STEPS):
            for agent, course in courses.items():
                send(store.agent_memory(agent), course.step(index))
            if index == _STEPS // 2:
                store.compact()
        store.flush()
        _await_watermark(store, directory / "live")
        copy_open_store(directory / "live", directory / "image")
    return Image(directory / "image", settings, seed)


def _await_watermark(store: Store, directory: Path) -> None:
    """Wait until the store has written down how far it is durable, which it does a moment after a sync."""
    ends_s = time.monotonic() + _WATERMARK_SECONDS_MAX
    durable = store.durability().durable_sequence
    while durable not in _written_down(directory):
        assert time.monotonic() < ends_s, "the watermark does not follow"
        time.sleep(0.005)


def _written_down(directory: Path) -> set[int]:
    contents = [path.read_bytes() for path in directory.rglob(WATERMARK_NAME)]
    marks = [read_slot(content[at : at + 32]) for content in contents for at in (0, 4096)]
    return {mark.sequence for mark in marks if mark is not None}


def _see(store: Store) -> _Seen:
    states, histories = {}, {}
    for agent in _AGENTS:
        memory = store.agent_memory(agent)
        episodes = list(memory.episodes())
        states[agent] = observe(episodes)
        for episode in episodes:
            histories[episode.id] = [str(each.content["text"]) for each in memory.history(episode.id)]
    return _Seen(states, histories)


def damage_everywhere(image: Image, scratch: Path, *, every: int) -> Iterator[Damage]:
    """Flip a bit of each ``every``-th byte of each file, cut each file in half, and remove each file: one at a time."""
    courses = {agent: Course(agent, image.seed) for agent in _AGENTS}
    scratch.mkdir()
    whole = _copy(image, scratch)
    with open_store(whole, **image.settings) as store:
        expected = _see(store)
        assert expected.states == {agent: course.state(_STEPS) for agent, course in courses.items()}
        assert store.verify().problems == []
    random = Random(image.seed)
    for path in sorted(image.directory.rglob("*")):
        name = str(path.relative_to(image.directory))
        if not path.is_file() or path.name.startswith(("LOG", "LOCK", "qilbee.lock")):
            continue
        content = path.read_bytes()
        step = min(every, 1 + len(content) // _FLIPS_OF_A_FILE_MIN)
        for at in range(random.randrange(step), len(content), step):
            flipped = bytearray(content)
            flipped[at] ^= 1 << random.randrange(8)
            yield _try(image, scratch, expected, name, f"a bit of byte {at} of {len(content)}", bytes(flipped))
        yield _try(image, scratch, expected, name, "its second half is gone", content[: len(content) // 2])
        yield _try(image, scratch, expected, name, "gone", None)


def _copy(image: Image, scratch: Path) -> Path:
    copy = scratch / "data"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(image.directory, copy)
    return copy


def _try(image: Image, scratch: Path, expected: _Seen, name: str, what: str, content: bytes | None) -> Damage:
    copy = _copy(image, scratch)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    verdict: Verdict = "noticed"
    try:
        with open_store(copy, **image.settings) as store:
            seen = _see(store)
            problems = store.verify().problems
            told = "; ".join(map(str, problems[:2]))
            if not problems:
                verdict = "harmless" if seen == expected else "silent"
                told = "" if seen == expected else f"{sum(map(len, seen.states.values()))} episodes are left"
    except QilbeeError as error:
        told = f"{type(error).__name__}: {error}"
    return Damage(name, what, verdict, told)
