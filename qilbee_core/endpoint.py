"""An HTTP endpoint of the OpenAI kind: one question in JSON, one answer, within bounds of time and size."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from qilbee_core.errors import PluginError, SettingsError, shown

__all__ = ["UNCHANGED", "Endpoint", "environment_of"]

ANSWER_BYTES_MAX = 32 << 20
UNCHANGED = "nothing was changed"
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S, _WAIT_MAX_S = 0.5, 60.0


def environment_of(what: str, base_url: str, api_key: str) -> tuple[str, str]:
    """URL and key: as given, else from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``, else OpenAI itself and none."""
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    if not base_url.startswith(("http://", "https://")):
        raise SettingsError(
            f"{what}: base_url is {base_url!r}", remedy="give a URL that begins with http:// or https://"
        )
    api_key = api_key or os.environ.get("OPENAI_API_KEY", "")
    if not api_key.isascii() or not api_key.isprintable():  # the library would quote it in its error
        raise SettingsError(f"{what}: api_key is no key", remedy="give it without line ends and spaces around")
    return base_url, api_key


class _AttemptError(Exception):
    """One attempt failed; ``wait_s`` is what the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Endpoint:
    """A connection. Thread-safe. ``timeout_s`` is for a whole answer, to its last byte."""

    def __init__(self, url: str, *, api_key: str, timeout_s: float, attempts_max: int) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)
        self._timeout_s = timeout_s
        self._attempts_max = attempts_max

    def close(self) -> None:
        """Let go of the connection. Idempotent."""
        self._client.close()

    def ask(self, question: bytes) -> bytes:
        """The answer to a question in JSON.

        What may pass (too many requests, server errors, a lost connection, no answer in time) is tried again, after as
        long as ``Retry-After`` says, or twice as long each time. Raises PluginError for everything else.
        """
        wait_s = _FIRST_WAIT_S
        for attempt in range(1, self._attempts_max + 1):
            try:
                return self._post(question)
            except _AttemptError as failure:
                pause_s = wait_s if failure.wait_s is None else failure.wait_s
                if attempt == self._attempts_max or pause_s > _WAIT_MAX_S:
                    raise PluginError(
                        f"{self.url} did not answer in {attempt} attempts: {failure}",
                        remedy=f"try again later; {UNCHANGED}",
                    ) from failure
            time.sleep(pause_s)
            wait_s *= 2
        raise AssertionError("attempts_max is 1 at least")

    def _post(self, question: bytes) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._client.stream(
                "POST", self.url, content=question, headers={"Content-Type": "application/json"}
            ) as response:
                answer = bytearray()
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > ANSWER_BYTES_MAX:
                        raise PluginError(
                            f"{self.url} answered with more than {ANSWER_BYTES_MAX} bytes",
                            remedy=f"check base_url; {UNCHANGED}",
                        )
                    if time.monotonic() > deadline:  # it may send a byte now and then, for ever
                        raise _AttemptError(f"no whole answer in {self._timeout_s:g} s")
        except httpx.TimeoutException as error:
            raise _AttemptError(f"no answer in {self._timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise _AttemptError(repr(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PluginError(
                f"{self.url} cannot be asked: {error!r}", remedy=f"check base_url; {UNCHANGED}"
            ) from error
        if response.status_code in _AGAIN:
            raise _AttemptError(f"status {response.status_code}", _retry_after_s(response.headers.get("Retry-After")))
        if response.status_code != 200:
            said = shown(answer.decode(errors="replace"))
            raise PluginError(
                f"{self.url} answered with status {response.status_code}: {said}",
                remedy=f"check base_url, key, model and response_format; {UNCHANGED}",
            )
        return bytes(answer)


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
