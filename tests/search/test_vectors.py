"""Vectors of an encoder in RAM: the nearest are found, whatever came and went before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qilbee_core import Episode
from qilbee_core.ids import event_us_of, parse_id
from qilbee_core.search.analysis import analyser
from qilbee_core.search.index import AgentIndex
from qilbee_core.search.lexicon import lexicon
from qilbee_core.search.meaning import Meaning
from qilbee_core.search.nearest import NEAREST, VectorNearness
from qilbee_core.search.question import question_of
from qilbee_core.search.rows import row_of
from qilbee_core.search.score import Filter
from qilbee_core.search.search import Hit, hybrid, semantic, similar
from qilbee_core.search.vectors import VectorIndex, rounded

TEXTS = ("The violin is in the attic.", "Tea is served at five.", "The tax office wrote again.", "A harbour at dawn.")
EPISODES = [Episode.observation("bot", text) for text in TEXTS]
IDS = [parse_id(episode.id) for episode in EPISODES]
QUERY = np.array([1, 0, 0], np.float32)


def index_of(episodes: list[Episode]) -> AgentIndex:
    index = AgentIndex(lexicon("english"))
    for episode in episodes:
        index.add(parse_id(episode.id), row_of(episode, analyser("english")))
    return index


def put(index: VectorIndex, ids: list[bytes], vectors: object) -> None:
    index.put(ids, rounded(np.array(vectors, np.float32)))


def found_by(hits: list[Hit]) -> list[str]:
    return [TEXTS[IDS.index(hit.id_bytes)] for hit in hits]


def test_an_encoder_finds_what_the_words_do_not() -> None:
    index, vectors = index_of(EPISODES), VectorIndex(3)
    put(vectors, IDS, [[number == 2, 1e-3, 1e-3] for number in range(4)])
    nearness = VectorNearness(index, vectors, QUERY, None)
    assert found_by(semantic(index, "irrelevant", 1, nearness=nearness)) == [TEXTS[2]]
    assert TEXTS[2] in found_by(hybrid(index, "penguins", nearness=nearness))


@pytest.mark.parametrize("known", [(2,), (1, 2), (1, 2, 3)], ids=len)
def test_where_there_is_no_vector_yet_the_table_of_words_serves(known: tuple[int, ...]) -> None:
    index, vectors = index_of(EPISODES), VectorIndex(3)
    put(vectors, [IDS[number] for number in known], [[number == 2, 1, 0] for number in known])
    words = Meaning(index, question_of("violins", index, 0).idfs)
    found = semantic(index, "violins", nearness=VectorNearness(index, vectors, QUERY, words))
    assert {TEXTS[0], TEXTS[2]} <= set(found_by(found))
    assert not {TEXTS[number] for number in known if number != 2} & set(found_by(found))
    near = {TEXTS[IDS.index(hit.id_bytes)]: hit.score for hit in found}
    assert near[TEXTS[2]] > 0.7
    assert near[TEXTS[0]] == semantic(index, "violins", 1)[0].score


def test_what_is_similar_goes_by_the_vector_of_the_episode() -> None:
    index, vectors = index_of(EPISODES), VectorIndex(3)
    put(vectors, IDS, [[1, 0, 0], [0, 1, 0], [1, 0.1, 0], [0, 0, 1]])
    own = vectors.vector_of(IDS[0])
    assert own is not None
    found = similar(index, IDS[0], nearness=VectorNearness(index, vectors, own, None))
    assert found_by(found) == [TEXTS[2]]


def test_a_vector_of_zeros_is_near_to_nothing() -> None:
    vectors = VectorIndex(3)
    put(vectors, IDS[:2], [[0, 0, 0], [1, 1, 0]])
    assert vectors.vector_of(IDS[0]) is None
    assert [id_bytes for id_bytes, cosine in vectors.nearest(QUERY, 4) if cosine > 0] == [IDS[1]]


def ids_of(count: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(1, count + 1)]


@given(st.integers(1, 60), st.integers(1, 130), st.integers(0, 1 << 32))
def test_vectors_are_found_alike_after_removals_and_in_any_order(count: int, dimensions: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = rounded(random.standard_normal((count, dimensions)).astype(np.float32))
    ids = ids_of(count)
    kept, anew = VectorIndex(dimensions), VectorIndex(dimensions)
    kept.put(ids, vectors[::-1])
    for id_bytes, vector in zip(ids, vectors, strict=True):
        kept.put([id_bytes], vector[None])
    left = [number for number in range(count) if random.random() < 0.6]
    for number in set(range(count)) - set(left):
        assert kept.remove(ids[number])
        assert not kept.remove(ids[number])
    anew.put([ids[number] for number in reversed(left)], vectors[left[::-1]])
    query = random.standard_normal(dimensions).astype(np.float32)
    assert kept.nearest(query, 10) == anew.nearest(query, 10)
    assert len(kept) == len(left)
    cosines = kept.cosines(ids, query)
    assert set(np.flatnonzero(~np.isnan(cosines)).tolist()) == set(left)
    exact = cosines_of(vectors, query)[left]
    assert np.allclose(cosines[left], exact, atol=1e-5)
    assert np.allclose([cosine for _, cosine in kept.nearest(query, 10)], np.sort(exact)[::-1][:10], atol=1e-5)


def cosines_of(vectors: NDArray[np.int8], query: NDArray[np.float32]) -> NDArray[np.float32]:
    plain = vectors.astype(np.float32)
    cosines: NDArray[np.float32] = plain @ query / np.linalg.norm(plain, axis=1) / np.linalg.norm(query)
    return cosines


def test_most_of_the_nearest_of_many_vectors_are_found_by_their_signs() -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((5000, 256)).astype(np.float32)
    index = VectorIndex(256)
    index.put(ids_of(5000), rounded(vectors))
    query = vectors[17] + random.standard_normal(256).astype(np.float32)
    exact = np.argsort(-(vectors @ query) / np.linalg.norm(vectors, axis=1))[:10]
    found = {int.from_bytes(id_bytes, "big") - 1 for id_bytes, _ in index.nearest(query, 10)}
    assert len(found & set(exact.tolist())) >= 9


@given(data=st.data())
def test_the_nearest_among_some_are_those_of_an_index_of_them_alone(data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    ids = [number.to_bytes(16, "big") for number in range(1, 60)]
    vectors = random.standard_normal((len(ids), 70)).astype(np.float32)
    some = data.draw(st.lists(st.sampled_from(ids), unique=True))
    index, alone = VectorIndex(70), VectorIndex(70)
    put(index, ids, vectors)
    if some:
        put(alone, some, vectors[[ids.index(each) for each in some]])
    query = random.standard_normal(70).astype(np.float32)
    strangers = [b"\xff" * 16]  # without a vector
    assert index.nearest(query, 10, [*some, *strangers, *some]) == alone.nearest(query, 10)


def test_a_filter_finds_what_is_far_behind_the_nearest_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilbee_core.search.vectors.CANDIDATES", 50)
    episodes = [
        Episode("bot", "rare" if number % 100 == 99 else "note", {"text": str(number)}) for number in range(1000)
    ]
    ids = [parse_id(episode.id) for episode in episodes]
    index, vectors = index_of(episodes), VectorIndex(2)
    angles = np.linspace(0.0, 1.5, len(ids))
    put(vectors, ids, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    rare, where = ids[99::100], Filter(episode_type="rare")
    assert ids.index(rare[4]) > NEAREST

    def nearness() -> VectorNearness:
        return VectorNearness(index, vectors, np.array([1, 0], np.float32), None)

    assert [hit.id_bytes for hit in semantic(index, "x", 10, nearness=nearness(), where=where)] == rare
    by_both = hybrid(index, "x", 10, semantic_weight=0.5, nearness=nearness(), where=where)
    assert [hit.id_bytes for hit in by_both] == rare
    assert [hit.id_bytes for hit in similar(index, rare[0], 10, nearness=nearness(), where=where)] == rare[1:]
    late = Filter(start_us=event_us_of(ids[990]))
    assert {hit.id_bytes for hit in semantic(index, "x", 20, nearness=nearness(), where=late)} == set(ids[990:])
