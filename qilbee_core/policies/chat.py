"""A chat endpoint of the OpenAI kind: one question, one answer in JSON, within bounds of time and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from qilbee_core.endpoint import UNCHANGED, Endpoint
from qilbee_core.errors import PluginError

__all__ = ["Chat", "Message", "ResponseFormat"]

ResponseFormat = Literal["json_schema", "json_object", "text"]


class Message(Struct, frozen=True):
    """Who says what."""

    role: str
    content: str


class _Choice(Struct):
    message: _Answer
    finish_reason: str | None = None


class _Answer(Struct):
    content: str | None = None


class _Completion(Struct):
    choices: list[_Choice]


class Chat:
    """A connection to an endpoint, closed at the end of its ``with`` block.

    ``base_url`` goes without ``/chat/completions``; ``timeout_s`` is for a whole answer, to its last byte.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        model: str,
        response_format: ResponseFormat,
        timeout_s: float,
        attempts_max: int,
    ) -> None:
        self._endpoint = Endpoint(
            f"{base_url.rstrip('/')}/chat/completions",
            api_key=api_key,
            timeout_s=timeout_s,
            attempts_max=attempts_max,
        )
        self._model = model
        self._response_format = response_format

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.close()

    def ask(self, messages: Sequence[Message], *, name: str, schema: Mapping[str, object]) -> str:
        """The text of the answer, which the endpoint was asked to write as JSON of ``schema``.

        Asked again as :class:`~qilbee_core.endpoint.Endpoint` does. Raises PluginError where there is none.
        """
        question = msgspec.json.encode(
            {
                "model": self._model,
                "messages": messages,
                "temperature": 0,
                **self._format(name, schema),
            }
        )
        return self._text_of(self._endpoint.ask(question))

    def _format(self, name: str, schema: Mapping[str, object]) -> dict[str, object]:
        if self._response_format == "json_schema":
            return {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": name, "strict": True, "schema": schema},
                }
            }
        return {"response_format": {"type": "json_object"}} if self._response_format == "json_object" else {}

    def _text_of(self, answer: bytes) -> str:
        try:
            completion = msgspec.json.decode(answer, type=_Completion)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PluginError(
                f"{self._endpoint.url} did not answer with a chat completion: {error}",
                remedy=f"check that it is a chat endpoint; {UNCHANGED}",
            ) from error
        text = completion.choices[0].message.content if completion.choices else None
        if not text:
            raise PluginError(f"{self._endpoint.url} gave an empty answer", remedy=f"use another model; {UNCHANGED}")
        if completion.choices[0].finish_reason == "length":
            raise PluginError(
                f"{self._endpoint.url} broke its answer off, for it grew too long",
                remedy=f"allow the model longer answers, or give it less with input_characters_max; {UNCHANGED}",
            )
        return text
