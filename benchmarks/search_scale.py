"""How fast search is, and what it costs: one agent of 1 k, 10 k, 100 k episodes, and 1000 agents of 100.

    python benchmarks/search_scale.py

Texts are made of a vocabulary with Zipf's law, in sessions of twenty turns of two speakers, always the same ones.
*Kept up* is a keyword search too, in an index that the episodes were added to one by one.
SQLite's FTS5 is asked the same questions in the same run, the words of a question joined by OR, ranked by its BM25.
One thread, whose CPU time is shown: by the clock it is the same on an idle machine. An *episode* here is one turn;
nothing is stored, but for the second table: the CPU of all threads for one run of episodes, stored and indexed until
nothing is pending.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import numpy as np
from _measure import console, machine, verdict
from rich.table import Table

from qilbee_core import Episode, open_store
from qilbee_core.ids import parse_id
from qilbee_core.search.analysis import analyser
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.rows import decode_row, encode_row, row_of
from qilbee_core.search.search import hybrid, keyword, semantic
from qilbee_core.search.stopwords import ENGLISH
from qilbee_core.search.table import shipped_words

SIZES = (1_000, 10_000, 100_000)
AGENTS, EPISODES_OF_AGENT = 1_000, 100
QUESTIONS = 200
WORDS_OF_QUESTION = 5
TURNS_OF_SESSION = 20
ROUNDS = 3
RUN_US_MAX = 90
INDEXED_S_MAX = 120
VOCABULARY = 30_000
ZIPF = 1.07
RARE = 0.05
"""The share of words that are not among the shipped ones: names, numbers, slips."""


def texts(count: int, seed: int = 1) -> Iterator[str]:
    """Sentences of about 24 words, half of them stop words as in speech; a tenth are questions."""
    random = Random(seed)
    stop_words = sorted(ENGLISH)
    words = [word for word in shipped_words() if len(word) > 2 and word not in ENGLISH]
    words = (words * 2)[:VOCABULARY]
    cumulated = list(np.cumsum([1 / (rank + 2.7) ** ZIPF for rank in range(len(words))]))
    for _ in range(count):
        length = random.randint(4, 20)
        chosen = random.choices(words, cum_weights=cumulated, k=length)
        chosen = [f"x{random.randrange(50_000)}" if random.random() < RARE else word for word in chosen]
        said = [word for each in chosen for word in (random.choice(stop_words), each)]
        yield " ".join(said) + ("?" if random.random() < 0.1 else ".")


def episodes(count: int, seed: int = 1) -> list[Episode]:
    """Turns of two speakers, a minute apart."""
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    return [
        Episode.observation(
            "agent",
            text,
            metadata={"speaker": ("Ann", "Ben")[number % 2], "session_id": f"session-{number // TURNS_OF_SESSION}"},
            event_time=begin + timedelta(minutes=number),
        )
        for number, text in enumerate(texts(count, seed))
    ]


def questions(seed: int = 2) -> list[str]:
    """Five content words each, every other one names a speaker."""
    random = Random(seed)
    found: list[str] = []
    for number, text in enumerate(texts(10 * QUESTIONS, seed)):
        words = text.rstrip(".?").split()[1::2]
        if len(words) >= WORDS_OF_QUESTION and len(found) < QUESTIONS:
            chosen = random.sample(words, WORDS_OF_QUESTION)
            found.append(("What did Ann say of " if number % 2 else "") + " ".join(chosen))
    return found


def asked(ask: Callable[[str], object], queries: list[str]) -> tuple[float, float]:
    """Median and 95th percentile of a question, in milliseconds."""
    times = []
    for query in queries:
        started = time.thread_time()
        ask(query)
        times.append(1e3 * (time.thread_time() - started))
    return median(times), quantiles(times, n=20)[-1] if len(times) > 1 else times[0]


def fts5(rows: list[Episode]) -> tuple[sqlite3.Connection, float]:
    """An index of SQLite in RAM, and the seconds it took."""
    database = sqlite3.connect(":memory:")
    started = time.thread_time()
    database.execute("create virtual table turns using fts5(text, tokenize='porter unicode61')")
    database.executemany("insert into turns values (?)", [(row.content["observation"],) for row in rows])
    database.commit()
    return database, time.thread_time() - started


def ask_fts5(database: sqlite3.Connection, query: str) -> list[tuple[int]]:
    """The ten best."""
    words = " OR ".join(f'"{word}"' for word in analyser("english").words(query))
    found: list[tuple[int]] = database.execute(
        "select rowid from turns where turns match ? order by bm25(turns) limit 10", (words,)
    ).fetchall()
    return found


def resident_mb() -> float:
    """The resident set of this process now, without what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def one_agent(size: int, queries: list[str]) -> list[str]:
    """A line of the table."""
    rows = episodes(size)
    english, words = analyser("english"), lexicon("english")
    started = time.thread_time()
    encoded = [(parse_id(row.id), encode_row(row_of(row, english))) for row in rows]
    analysed_us = 1e6 * (time.thread_time() - started) / size
    before_mb = resident_mb()
    started = time.thread_time()
    index = AgentIndex(words)
    index.load((id_bytes, decode_row(row)) for id_bytes, row in encoded)
    opened_ms = 1e3 * (time.thread_time() - started)
    memory_mb = resident_mb() - before_mb
    one_by_one = AgentIndex(words)
    started = time.thread_time()
    for id_bytes, row in encoded:
        one_by_one.add(id_bytes, decode_row(row))
    added_us = 1e6 * (time.thread_time() - started) / size
    database, fts5_s = fts5(rows)
    cells = [f"{size:,}", f"{analysed_us:.0f}", f"{added_us:.0f}", f"{1e6 * fts5_s / size:.0f}", f"{opened_ms:.0f}"]
    cells += [f"{memory_mb:.0f}", f"{sum(len(row) for _, row in encoded) / size:.0f}"]
    asks = [partial(keyword, index), partial(keyword, one_by_one), partial(hybrid, index), partial(semantic, index)]
    cells += ["{:.2f} / {:.2f}".format(*asked(ask, queries)) for ask in asks]
    cells.append("{:.2f} / {:.2f}".format(*asked(partial(ask_fts5, database), queries)))
    return cells


def many_agents(queries: list[str]) -> list[str]:
    """1000 agents: what opening one and asking it takes, and all of them in RAM."""
    english, words = analyser("english"), lexicon("english")
    rows = episodes(AGENTS * EPISODES_OF_AGENT)
    encoded = [(parse_id(row.id), encode_row(row_of(row, english))) for row in rows]
    before_mb = resident_mb()
    opened, indexes = [], []
    for start in range(0, len(encoded), EPISODES_OF_AGENT):
        started = time.thread_time()
        index = AgentIndex(words)
        index.load((id_bytes, decode_row(row)) for id_bytes, row in encoded[start : start + EPISODES_OF_AGENT])
        opened.append(1e3 * (time.thread_time() - started))
        indexes.append(index)
    cells = [f"{AGENTS:,} x {EPISODES_OF_AGENT}", "", "", "", f"{median(opened):.2f}"]
    cells += [f"{resident_mb() - before_mb:.0f}", ""]
    random = Random(3)
    for ask in (keyword, hybrid, semantic):
        figures = [asked(partial(ask, random.choice(indexes)), [query])[0] for query in queries]
        cells.append(f"{median(figures):.2f} / {quantiles(figures, n=20)[-1]:.2f}")
    cells.insert(-2, "")
    return [*cells, ""]


def run_us(rows: list[Episode], at_once: int, *, in_ram: bool) -> float:
    """Microseconds of CPU an episode; of an agent that was searched before, where its index is to be in RAM."""
    with TemporaryDirectory(prefix="qilbee-bench-search-") as directory, open_store(directory) as store:
        memory = store.agent_memory("agent")
        if in_ram:
            memory.store_episode(Episode.observation("agent", "something"))
            assert memory.search_episodes("something")
        started = time.process_time()
        for start in range(0, len(rows), at_once):
            if at_once == 1:
                memory.store_episode(rows[start])
            else:
                memory.store_episodes(rows[start : start + at_once])
        deadline_s = time.monotonic() + INDEXED_S_MAX
        while isinstance(figures := store.stats()["search"], Mapping) and figures["pending"]:
            assert time.monotonic() < deadline_s, f"the index is not complete within {INDEXED_S_MAX} s"
            time.sleep(0.05)
        return 1e6 * (time.process_time() - started) / len(rows)


def runs(size: int) -> Table:
    """What one run of episodes costs, until nothing is pending."""
    table = Table(title=f"microseconds of CPU an episode, one run of {size:,}", title_justify="left")
    for heading in ("stored", "index", "us", "target", ""):
        table.add_column(heading, justify="right" if heading == "us" else "left")
    rows = episodes(size)
    for name, at_once in (("one by one", 1), ("1,000 at once", 1000)):
        for place, in_ram in (("not in RAM", False), ("in RAM", True)):
            took_us = median(run_us(rows, at_once, in_ram=in_ram) for _ in range(ROUNDS))
            table.add_row(name, place, f"{took_us:.0f}", f"<= {RUN_US_MAX}", verdict(took_us, RUN_US_MAX))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="leave out agents of more episodes")
    most = parser.parse_args().most
    console.print(machine())
    table = Table(title="microseconds of CPU an episode, milliseconds a question (p50 / p95)", title_justify="left")
    for heading in (
        "episodes",
        "analyse us",
        "add us",
        "FTS5 us",
        "open ms",
        "RAM MB",
        "row bytes",
        "keyword ms",
        "kept up ms",
        "hybrid ms",
        "semantic ms",
        "FTS5 ms",
    ):
        table.add_column(heading, justify="right")
    queries = questions()
    warm = AgentIndex(lexicon("english"))
    hybrid(warm, queries[0])
    for size in SIZES:
        if size <= most:
            table.add_row(*one_agent(size, queries))
    table.add_row(*many_agents(queries))
    console.print(table)
    console.print(runs(min(most, SIZES[-1])))


if __name__ == "__main__":
    main()
