"""The embedders that are built in: what each promises, and what the one that asks makes of a bad answer."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from shared.embedders import Hashes, HashesPlugin, embeddings, plugins_with, serving, vector_of
from shared.endpoint import Endpoint, HastyClock, reply

import qilbee_core.endpoint
from qilbee_core import Embedder, PluginError, ProviderNotFoundError, SettingsError, load_plugins
from qilbee_core.embedders.openai import OpenAISettings
from qilbee_core.testing import EmbedderContract

Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class TestStatic(EmbedderContract):
    def open_embedder(self) -> Embedder:
        return load_plugins().embedders.create("static")


class TestHashes(EmbedderContract):
    def open_embedder(self) -> Embedder:
        return Hashes()


class TestOpenAI(EmbedderContract):
    @pytest.fixture(autouse=True)
    def _served(self) -> Iterator[None]:
        with serving() as self.endpoint:
            yield

    def open_embedder(self) -> Embedder:
        return openai(self.endpoint)


def openai(endpoint: Endpoint, **settings: object) -> Embedder:
    given: dict[str, Any] = {"base_url": endpoint.url, "model": "words", "dimensions": 16, **settings}
    return load_plugins().embedders.find("openai").create(**given)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(qilbee_core.endpoint, "_FIRST_WAIT_S", 0.01)
    with serving() as served:
        yield served


# What the kit finds


class _Broken(Hashes):
    def __init__(self, vectors: object) -> None:
        super().__init__()
        self.behave = lambda _: vectors


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((11, 16), np.float32),
        np.full((11, 16), 0.25, np.float64),
        np.full((10, 16), 0.25, np.float32),
        np.full((11, 8), 0.25, np.float32),
        np.full((11, 16), np.nan, np.float32),
        [[0.25] * 16] * 11,
    ],
    ids=["not of length 1", "float64", "a row too few", "too short", "not a number", "a list"],
)
def test_the_kit_finds_what_is_no_embedder(vectors: object) -> None:
    class Contract(EmbedderContract):
        def open_embedder(self) -> Embedder:
            return _Broken(vectors)

    with pytest.raises(AssertionError):
        Contract().test_there_is_a_row_of_length_1_for_each_text_in_float32()


# What is sent


def test_texts_are_sent_in_batches_and_come_back_in_their_order(endpoint: Endpoint) -> None:
    texts = [f"text {number}" for number in range(10)]
    vectors = openai(endpoint, texts_max=4, api_key="secret").embed(texts)
    assert [request["input"] for request in endpoint.requests] == [texts[:4], texts[4:8], texts[8:]]
    assert np.allclose(vectors, [vector_of(text, 16) for text in texts], atol=1e-6)
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"
    assert endpoint.headers[0]["path"] == "/v1/embeddings"
    assert {name: value for name, value in endpoint.requests[0].items() if name != "input"} == {
        "model": "words",
        "encoding_format": "base64",
    }


def test_an_endpoint_that_gives_lists_of_numbers_is_understood(endpoint: Endpoint) -> None:
    endpoint.behave = lambda handler, request: reply(handler, embeddings({**request, "encoding_format": "float"}))
    assert np.allclose(openai(endpoint).embed(["tea"]), [vector_of("tea", 16)], atol=1e-6)


def test_a_text_without_a_word_is_not_sent_and_a_long_one_is_cut(endpoint: Endpoint) -> None:
    vectors = openai(endpoint, text_characters_max=5).embed(["", "tea and ink", " \n"])
    assert [request["input"] for request in endpoint.requests] == [["tea a"]]
    assert np.array_equal(vectors[0], vectors[2])


def test_base_url_and_key_come_from_the_environment_where_no_setting_gives_them(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from outside")
    load_plugins().embedders.create("openai", model="words", dimensions=16).embed(["tea"])
    assert endpoint.headers[0]["Authorization"] == "Bearer from outside"


def test_models_of_openai_are_known_and_shortened_where_asked_for(endpoint: Endpoint) -> None:
    assert openai(endpoint, model="text-embedding-3-small", dimensions=None).dimensions == 1536
    short = openai(endpoint, model="text-embedding-3-large", dimensions=256)
    assert short.embed(["tea"]).shape == (1, 256)
    assert endpoint.requests[0]["dimensions"] == 256
    assert short.name == "openai/text-embedding-3-large"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dimensions": None}, "give dimensions"),
        ({"model": ""}, "settings of embedder 'openai'"),
        ({"dimension": 3}, "no setting 'dimension'"),
        ({"base_url": "localhost:8000"}, "begins with http"),
        ({"api_key": "two\nlines"}, "api_key is no key"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_wrong_settings_are_refused_before_anything_is_asked(
    endpoint: Endpoint, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        openai(endpoint, **settings)
    assert endpoint.requests == []


def test_the_key_is_in_no_representation() -> None:
    assert "secret" not in repr(OpenAISettings(model="words", api_key="secret"))


def test_what_an_embedder_needs_is_named_with_the_command() -> None:
    with pytest.raises(ProviderNotFoundError, match=r"needs acme_words_that_nobody_has.*: pip install acme"):
        plugins_with(HashesPlugin()).embedders.create("test.missing")
    with pytest.raises(ProviderNotFoundError, match="no embedder 'word2vec'; installed are openai, static"):
        load_plugins(disabled=[]).embedders.create("word2vec")


# What an endpoint may do wrong


def first_then_well(endpoint: Endpoint, first: Behaviour) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        if len(endpoint.requests) == 1:
            first(handler, request)
        else:
            reply(handler, embeddings(request))

    return behave


@pytest.mark.parametrize(
    "first",
    [
        lambda handler, _: reply(handler, b"busy", 429, Retry_After="0"),
        lambda handler, _: reply(handler, b"down", 503),
        lambda handler, _: handler.connection.close(),
    ],
    ids=["too many requests", "unavailable", "connection lost"],
)
def test_what_may_pass_is_tried_again(endpoint: Endpoint, first: Behaviour) -> None:
    endpoint.behave = first_then_well(endpoint, first)
    assert openai(endpoint).embed(["tea"]).shape == (1, 16)
    assert len(endpoint.requests) == 2


def test_it_gives_up_after_so_many_attempts(endpoint: Endpoint) -> None:
    endpoint.behave = lambda handler, _: reply(handler, b"down", 500)
    with pytest.raises(PluginError, match="did not answer in 2 attempts: status 500"):
        openai(endpoint, attempts_max=2).embed(["tea"])
    assert len(endpoint.requests) == 2


def test_an_answer_that_never_ends_is_not_waited_for(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qilbee_core.endpoint, "time", HastyClock())

    def drip(handler: BaseHTTPRequestHandler, _: object) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)

    endpoint.behave = drip
    with pytest.raises(PluginError, match="no whole answer in 60 s"):
        openai(endpoint, timeout_s=60, attempts_max=1).embed(["tea"])


NOT_FINITE = base64.b64encode(np.full(16, np.nan, "<f4").tobytes()).decode()
WRONG: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "no JSON": (lambda _: b"<html>", "no list of embeddings"),
    "something else": (lambda _: b'{"object": "list"}', "no list of embeddings"),
    "one too few": (lambda request: embeddings({**request, "input": request["input"][:1]}), "1 embeddings for 2 texts"),
    "twice the same": (
        lambda request: json.dumps({"data": [{"index": 0, "embedding": [1.0] * 16}] * 2}).encode(),
        "2 embeddings for 2 texts",
    ),
    "another length": (lambda request: embeddings(request, 8), "8 numbers, not 16"),
    "zeros": (
        lambda _: json.dumps({"data": [{"index": at, "embedding": [0.0] * 16} for at in (0, 1)]}).encode(),
        "all zero",
    ),
    "not finite": (
        lambda _: json.dumps({"data": [{"index": at, "embedding": NOT_FINITE} for at in (0, 1)]}).encode(),
        "not finite",
    ),
    "no base64": (
        lambda _: json.dumps({"data": [{"index": at, "embedding": "?"} for at in (0, 1)]}).encode(),
        "no list of embeddings",
    ),
}


@pytest.mark.parametrize(("answer", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_refused(endpoint: Endpoint, answer: Callable[[dict[str, Any]], bytes], words: str) -> None:
    endpoint.behave = lambda handler, request: reply(handler, answer(request))
    with pytest.raises(PluginError, match=words):
        openai(endpoint).embed(["tea", "ink"])
    assert len(endpoint.requests) == 1


def test_a_refusal_says_what_the_endpoint_said(endpoint: Endpoint) -> None:
    endpoint.behave = lambda handler, _: reply(handler, b'{"error": "no such model"}', 404)
    with pytest.raises(PluginError, match=r"status 404.*no such model"):
        openai(endpoint).embed(["tea"])
