"""The embedder ``openai``: asks an endpoint of the OpenAI kind, OpenAI's own or one that speaks the same protocol."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from qilbee_core.endpoint import UNCHANGED, Endpoint, environment_of
from qilbee_core.errors import PluginError, SettingsError

__all__ = ["OpenAIEmbedder", "OpenAISettings"]

_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_SHORTENABLE = {"text-embedding-3-small", "text-embedding-3-large"}


class OpenAISettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of ``openai``."""

    model: Annotated[str, Meta(min_length=1)]
    """Name of the model, as the endpoint knows it."""
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    """Numbers of a vector; None: as many as that model of OpenAI has."""
    base_url: str = ""
    """Where ``/embeddings`` is; empty: ``OPENAI_BASE_URL`` of the environment, else OpenAI itself."""
    api_key: str = ""
    """Empty: ``OPENAI_API_KEY`` of the environment; an endpoint of your own may need none."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 20.0
    """For an answer to one request."""
    attempts_max: Annotated[int, Meta(ge=1, le=10)] = 3
    """For one request, where the endpoint is busy or cannot be reached."""
    texts_max: Annotated[int, Meta(ge=1, le=2048)] = 64
    """In one request."""
    text_characters_max: Annotated[int, Meta(ge=1)] = 20_000
    """What stands behind in a text is not sent."""

    def __repr__(self) -> str:
        """Everything but the key."""
        return f"OpenAISettings(model={self.model!r}, base_url={self.base_url!r}, api_key=...)"


class _Row(Struct):
    index: int
    embedding: str | list[float]


class _Answer(Struct):
    data: list[_Row]


class OpenAIEmbedder:
    """Vectors of whatever model the endpoint has. Texts without a word are not sent; they have all the same vector."""

    def __init__(self, settings: OpenAISettings) -> None:
        base_url, api_key = environment_of("embedder 'openai'", settings.base_url, settings.api_key)
        usual = _DIMENSIONS.get(settings.model)
        dimensions = settings.dimensions or usual
        if dimensions is None:
            raise SettingsError(
                f"embedder 'openai': how many numbers has a vector of {settings.model!r}?",
                remedy="give dimensions, as the model's page says",
            )
        self.name = f"openai/{settings.model}"
        self.dimensions = dimensions
        self._settings = settings
        self._asked: dict[str, object] = {"model": settings.model, "encoding_format": "base64"}
        if dimensions != usual and settings.model in _SHORTENABLE:
            self._asked["dimensions"] = dimensions
        self._endpoint = Endpoint(
            f"{base_url.rstrip('/')}/embeddings",
            api_key=api_key,
            timeout_s=settings.timeout_s,
            attempts_max=settings.attempts_max,
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row for each text, of length 1. PluginError where the endpoint gives no good answer."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        vectors[:, 0] = 1.0
        sent = [row for row, text in enumerate(texts) if text.strip()]
        for start in range(0, len(sent), self._settings.texts_max):
            rows = sent[start : start + self._settings.texts_max]
            vectors[rows] = self._ask([texts[row][: self._settings.text_characters_max] for row in rows])
        return vectors

    def _ask(self, texts: list[str]) -> NDArray[np.float32]:
        answer = self._endpoint.ask(msgspec.json.encode({**self._asked, "input": texts}))
        try:
            data = msgspec.json.decode(answer, type=_Answer).data
            found = {row.index: _numbers(row.embedding) for row in data}
        except (msgspec.DecodeError, UnicodeError, ValueError) as error:
            raise self._broken(f"what is no list of embeddings: {error}") from error
        if sorted(found) != list(range(len(texts))) or len(data) != len(texts):
            raise self._broken(f"{len(data)} embeddings for {len(texts)} texts")
        if any(len(row) != self.dimensions for row in found.values()):
            raise self._broken(f"embeddings of {len(found[0])} numbers, not {self.dimensions}")
        vectors = np.stack([found[row] for row in range(len(texts))])
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(length).all() or not length.all():
            raise self._broken("numbers that are not finite, or all zero")
        unit: NDArray[np.float32] = vectors / length
        return unit

    def _broken(self, what: str) -> PluginError:
        return PluginError(
            f"{self._endpoint.url} gave {what}", remedy=f"check base_url, model and dimensions; {UNCHANGED}"
        )


def _numbers(embedding: str | list[float]) -> NDArray[np.float32]:
    """Some endpoints give lists whatever they are asked for."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.array(embedding, np.float32)
