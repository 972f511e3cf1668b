"""A chat endpoint of the OpenAI kind: one question, one answer in JSON, within bounds of time and size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import httpx
import msgspec
from msgspec import Struct

from qilbee_core.errors import PluginError, shown

__all__ = ["Chat", "Message", "ResponseFormat"]

ResponseFormat = Literal["json_schema", "json_object", "text"]

ANSWER_BYTES_MAX = 4 << 20
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S, _WAIT_MAX_S = 0.5, 60.0
_UNCHANGED = "nothing was changed"


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


class _AttemptError(Exception):
    """One attempt failed; ``wait_s`` is what the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


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
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)
        self._model = model
        self._response_format = response_format
        self._timeout_s = timeout_s
        self._attempts_max = attempts_max

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: Sequence[Message], *, name: str, schema: Mapping[str, object]) -> str:
        """The text of the answer, which the endpoint was asked to write as JSON of ``schema``.

        What may pass (too many requests, server errors, a lost connection, no answer in time) is tried again, after as
        long as ``Retry-After`` says, or twice as long each time. Raises PluginError for everything else.
        """
        question = msgspec.json.encode(
            {
                "model": self._model,
                "messages": messages,
                "temperature": 0,
                **self._format(name, schema),
            }
        )
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, self._attempts_max + 1):
            try:
                return self._text_of(self._post(question))
            except _AttemptError as failure:
                pause_s = wait_s if failure.wait_s is None else failure.wait_s
                if attempt == self._attempts_max or pause_s > _WAIT_MAX_S:
                    raise PluginError(
                        f"{self._url} did not answer in {attempt} attempts: {failure}",
                        remedy=f"try again later; {_UNCHANGED}",
                    ) from failure
            time.sleep(pause_s)
            wait_s *= 2
        raise AssertionError("attempts_max is 1 at least")

    def _format(self, name: str, schema: Mapping[str, object]) -> dict[str, object]:
        if self._response_format == "json_schema":
            return {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": name, "strict": True, "schema": schema},
                }
            }
        return {"response_format": {"type": "json_object"}} if self._response_format == "json_object" else {}

    def _post(self, question: bytes) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._client.stream(
                "POST", self._url, content=question, headers={"Content-Type": "application/json"}
            ) as response:
                answer = bytearray()
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > ANSWER_BYTES_MAX:
                        raise PluginError(
                            f"{self._url} answered with more than {ANSWER_BYTES_MAX} bytes",
                            remedy=f"check that it is a chat endpoint; {_UNCHANGED}",
                        )
                    if time.monotonic() > deadline:  # it may send a byte now and then, for ever
                        raise _AttemptError(f"no whole answer in {self._timeout_s:g} s")
        except httpx.TimeoutException as error:
            raise _AttemptError(f"no answer in {self._timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _AttemptError(repr(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PluginError(
                f"{self._url} cannot be asked: {error!r}", remedy=f"check base_url; {_UNCHANGED}"
            ) from error
        if response.status_code in _AGAIN:
            raise _AttemptError(f"status {response.status_code}", _retry_after_s(response.headers.get("Retry-After")))
        if response.status_code != 200:
            said = shown(answer.decode(errors="replace"))
            raise PluginError(
                f"{self._url} answered with status {response.status_code}: {said}",
                remedy=f"check base_url, key, model and response_format; {_UNCHANGED}",
            )
        return bytes(answer)

    def _text_of(self, answer: bytes) -> str:
        try:
            completion = msgspec.json.decode(answer, type=_Completion)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PluginError(
                f"{self._url} did not answer with a chat completion: {error}",
                remedy=f"check that it is a chat endpoint; {_UNCHANGED}",
            ) from error
        text = completion.choices[0].message.content if completion.choices else None
        if not text:
            raise PluginError(f"{self._url} gave an empty answer", remedy=f"use another model; {_UNCHANGED}")
        if completion.choices[0].finish_reason == "length":
            raise PluginError(
                f"{self._url} broke its answer off, for it grew too long",
                remedy=f"allow the model longer answers, or give it less with input_characters_max; {_UNCHANGED}",
            )
        return text


def _retry_after_s(text: str | None) -> float | None:
    """Seconds from now, of a header that holds seconds or a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    try:
        return max(0.0, float(text)) if text.strip().isdecimal() else _seconds_until(parsedate_to_datetime(text))
    except (ValueError, OverflowError):
        return None


def _seconds_until(moment: datetime) -> float:
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
