"""What a store must hold, known without asking it.

Each agent does a row of steps that follows from a seed alone, one after another. So after any crash its memory must be
what the first so many steps make, of at least all that were acknowledged and at most all that were begun. Which these
were stands in a ledger that the program under test wrote outside of the store:

=======================  =====================================================================
``opening`` ``opened``   around ``open_store``
``begun AGENT STEP``     before the first call for a step
``done AGENT STEP``      after a call for it has returned; each step is sent twice, so this comes twice
``wrong TEXT``           a reader saw what no row of steps explains
=======================  =====================================================================

A step that was begun and is not done has an unknown outcome: both are right, and sending it again must make it one.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Collection, Iterable, Iterator
from random import Random
from typing import NamedTuple, overload

from qilbee_core import AgentMemory, AsyncAgentMemory, Episode, JSONObject, Store
from qilbee_core.ids import format_id, lowest_id

__all__ = ["Course", "Judgement", "Ledger", "State", "Step", "judge", "observe", "seed_without_clear", "send"]

State = dict[int, str]
"""Number of each episode that is there -> its text."""

_EPISODE_TIME_US = 1_700_000_000_000_000
_PADDING_MAX = 1500
_VERBS: dict[str, float] = {"store": 60, "store by key": 12, "batch": 8, "update": 12, "delete": 7, "clear": 0.5}
"""How often each is done, beside the others."""


class Step(NamedTuple):
    """One call: ``numbers`` are the episodes it is about. Sent again, it changes nothing more."""

    verb: str
    numbers: tuple[int, ...] = ()
    text: str = ""


class Course:
    """The row of steps of one agent, and what its memory holds after each."""

    def __init__(self, agent: str, seed: int) -> None:
        self.agent = agent
        self._steps: list[Step] = []
        self._source = _steps(agent, seed)
        self._state: State = {}
        self._at = 0

    def step(self, index: int) -> Step:
        """The step of that index, counted from 0."""
        while len(self._steps) <= index:
            self._steps.append(next(self._source))
        return self._steps[index]

    def state(self, count: int) -> State:
        """What the memory holds after the first ``count`` steps. Quick where ``count`` does not fall."""
        if count < self._at:
            self._state, self._at = {}, 0
        for index in range(self._at, count):
            apply(self.step(index), self._state)
        self._at = count
        return self._state


def seed_without_clear(seed: int, agents: Collection[str], count: int) -> int:
    """The first seed from there on whose first steps never clear: an empty memory has then surely lost them all."""
    for candidate in itertools.count(seed):
        courses = [Course(agent, candidate) for agent in agents]
        if all(course.step(index).verb != "clear" for course in courses for index in range(count)):
            return candidate
    raise AssertionError


def _steps(agent: str, seed: int) -> Iterator[Step]:
    random = Random(f"{seed} {agent}")
    alive: set[int] = set()
    numbers = 0
    for at in range(1 << 62):
        text = f"{agent} {at} " + "".join(random.choices("abcdefgh ", k=random.randrange(_PADDING_MAX)))
        verb = random.choices(list(_VERBS), list(_VERBS.values()))[0]
        if verb in {"update", "delete"} and alive:
            number = random.choice(sorted(alive))
            if verb == "delete":
                alive.discard(number)
            yield Step(verb, (number,), text)
        elif verb == "clear":
            alive.clear()
            yield Step(verb)
        else:
            count = random.randint(2, 5) if verb == "batch" else 1
            made = tuple(range(numbers, numbers + count))
            numbers += count
            if verb != "store by key":  # the store draws that id, so no later step can name it
                alive.update(made)
            yield Step(verb if verb in {"batch", "store by key"} else "store", made, text)


def apply(step: Step, state: State) -> None:
    """What ``step`` does to ``state``."""
    if step.verb == "clear":
        state.clear()
    elif step.verb == "delete":
        del state[step.numbers[0]]
    else:
        for number in step.numbers:
            state[number] = step.text


@overload
def send(memory: AgentMemory, step: Step) -> object: ...
@overload
def send(memory: AsyncAgentMemory, step: Step) -> Awaitable[object]: ...
def send(memory: AgentMemory | AsyncAgentMemory, step: Step) -> object:
    """Do ``step``, or give what to await of it. It must be no error however often it is done."""
    agent = memory.agent_id
    match step.verb:
        case "store":
            return memory.store_episode(_episode(agent, step.numbers[0], step.text))
        case "store by key":
            made = Episode(agent, "note", _content(step.numbers[0], step.text))
            return memory.store_episode(made, idempotency_key=f"key {step.numbers[0]}")
        case "batch":
            return memory.store_episodes([_episode(agent, number, step.text) for number in step.numbers])
        case "update":
            number = step.numbers[0]
            return memory.update_episode(_id_of(number), content=_content(number, step.text))
        case "delete":
            return memory.delete_episode(_id_of(step.numbers[0]))
        case _:
            return memory.clear()


def _id_of(number: int) -> str:
    lowest = lowest_id(_EPISODE_TIME_US + 1_000_000 * number)
    return format_id(lowest[:8] + b"\x80" + lowest[9:])  # the variant, without which it is no id


def _content(number: int, text: str) -> JSONObject:
    return {"number": number, "text": text}


def _episode(agent: str, number: int, text: str) -> Episode:
    return Episode(agent, "note", _content(number, text), id=_id_of(number))


def observe(episodes: Iterable[Episode]) -> State:
    """The state that ``episodes`` are; ValueError where one is there twice or under another's id."""
    state: State = {}
    for each in episodes:
        number = each.content["number"]
        assert isinstance(number, int)
        if number in state:
            raise ValueError(f"episode {number} is there twice")
        state[number] = str(each.content["text"])
    return state


class Ledger:
    """How many steps each agent has begun, and how many of them are done."""

    def __init__(self) -> None:
        self.begun: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.wrong: list[str] = []
        self.opened = False

    def read(self, lines: Iterable[str]) -> None:
        """Go on with these lines."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in {"begun", "done"}:
                agent, _, step = rest.rpartition(" ")
                counts = self.begun if word == "begun" else self.done
                counts[agent] = max(counts.get(agent, 0), int(step) + 1)
            elif word == "wrong":
                self.wrong.append(rest)
            elif word in {"opening", "opened"}:
                self.opened = word == "opened"


class Judgement(NamedTuple):
    """What was found. ``lost`` counts acknowledged steps, ``unknown`` those begun and not acknowledged."""

    problems: list[str]
    lost: int
    unknown: int
    kept: dict[str, int]


def judge(store: Store, courses: dict[str, Course], ledger: Ledger, *, retry: bool = True) -> Judgement:
    """Compare ``store`` with what it must hold, then send again what is unknown or lost, and compare once more."""
    problems = list(ledger.wrong)
    lost = unknown = 0
    kept: dict[str, int] = {}
    for agent, course in courses.items():
        begun, done = ledger.begun.get(agent, 0), ledger.done.get(agent, 0)
        try:
            state = observe(store.agent_memory(agent).episodes())
        except ValueError as error:
            problems.append(f"{agent}: {error}")
            continue
        count = _steps_in(course, state, done, begun)
        if count is None:
            problems.append(f"{agent}: {len(state)} episodes, which no first steps of {done} to {begun} make")
            continue
        kept[agent] = count
        lost += max(0, done - count)
        unknown += begun - done
    problems += [f"verify: {problem}" for problem in store.verify().problems]
    if retry and not problems:
        for agent, count in kept.items():
            problems += _again(store.agent_memory(agent), courses[agent], count, ledger.begun.get(agent, 0))
        problems += [f"verify after sending again: {problem}" for problem in store.verify().problems]
    return Judgement(problems, lost, unknown, kept)


def _steps_in(course: Course, state: State, done: int, begun: int) -> int | None:
    """How many steps make ``state``; if several numbers do, the greatest of them."""
    for count in itertools.chain(range(begun, done - 1, -1), range(done - 1, -1, -1)):
        if course.state(count).items() == state.items():
            return count
    return None


def _again(memory: AgentMemory, course: Course, kept: int, begun: int) -> list[str]:
    first = max(0, kept - 1)  # the last one that is there too: it must not be there twice afterwards
    if kept and course.step(first).verb in {"clear", "delete"}:
        first = kept
    for index in range(first, begun):
        send(memory, course.step(index))
    problems = []
    try:
        state = observe(memory.episodes())
        if state != course.state(begun):
            problems.append(f"{memory.agent_id}: sending again from step {first} does not make one of each")
        if memory.get_statistics().total_episodes != len(state):
            problems.append(f"{memory.agent_id}: the count of episodes is wrong")
    except ValueError as error:
        problems.append(f"{memory.agent_id}: sent again, {error}")
    return problems
