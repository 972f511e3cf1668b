"""Embedders for tests: one of hashes that may be told to fail, and an endpoint that answers like OpenAI's."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilbee_core import Embedder, Plugins, Provider, hookimpl, load_plugins
from shared.endpoint import Endpoint, serving_endpoint


def vector_of(text: str, dimensions: int, name: str = "") -> NDArray[np.float32]:
    """What a text means to an embedder that understands nothing: the same text is the same."""
    random = np.random.default_rng(zlib.crc32(f"{name}|{text}".encode()))
    vector = random.standard_normal(dimensions)
    unit: NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


class Hashes:
    """An embedder; ``behave`` is called with the texts, and may raise, wait, or give what is to be given instead."""

    def __init__(self, *, model: str = "test/hashes", dimensions: int = 16) -> None:
        self.name = model
        self.dimensions = dimensions
        self.asked: list[list[str]] = []
        self.behave: Callable[[Sequence[str]], object] = lambda _: None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(texts))
        given: Any = self.behave(texts)
        if given is not None:
            return given  # type: ignore[no-any-return]
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            vectors[row] = vector_of(text, self.dimensions, self.name)
        return vectors


class HashesPlugin:
    """The embedder ``test.hashes``, and the ones that were made."""

    def __init__(self) -> None:
        self.made: list[Hashes] = []
        self.behave: Callable[[Sequence[str]], object] = lambda _: None

    def create(self, **options: Any) -> Hashes:
        made = Hashes(**options)
        made.behave = lambda texts: self.behave(texts)  # noqa: PLW0108 - of then, not of now
        self.made.append(made)
        return made

    @hookimpl
    def qilbee_register_embedders(self) -> Iterable[Provider[Embedder]]:
        return [Provider("test.hashes", self.create), Provider("test.missing", missing, install="pip install acme")]


def plugins_with(plugin: HashesPlugin) -> Plugins:
    return load_plugins(extra=[plugin])


def missing(**_: object) -> Embedder:
    import acme_words_that_nobody_has  # type: ignore[import-not-found]

    return acme_words_that_nobody_has.Embedder()  # type: ignore[no-any-return]


def serving() -> AbstractContextManager[Endpoint]:
    """An endpoint for embeddings on a free port of this machine."""
    return serving_endpoint(embeddings)


def embeddings(request: dict[str, Any], dimensions: int = 16, **changes: object) -> bytes:
    """A good answer, in any order, unless ``changes`` say otherwise."""
    form = request.get("encoding_format")
    data = []
    for index, text in enumerate(request["input"]):
        vector = 3.0 * vector_of(text, request.get("dimensions", dimensions))
        numbers = base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": numbers})
    return json.dumps({"object": "list", "data": data[::-1], "model": request["model"], **changes}).encode()
