"""One call of a server from its first attempt to its answer, without sending anything itself.

A :class:`Call` is a request as data. :func:`exchange` decides what to do next, and is told what came of it: send, wait
before another attempt, or get a new access token first. It is a generator, so that the blocking client and the one for
asyncio (transport.py) have the same rules, and those can be tested without a network.

Which failures are tried again:

- nothing was sent (connection refused, no free connection), or the server took nothing (429, 503): always;
- the answer was lost (reset, half an answer, time-out, 502, 504): where the call may be sent twice. Otherwise
  :class:`~qilbeedb.exceptions.OutcomeUnknownError` tells that the server may have done it.

Between attempts the wait doubles from 0.1 s to 5 s, half of it by chance, so that clients that failed together do not
come back together; it is as long as ``Retry-After`` at least. A server that says to wait longer than 30 s is not waited
for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeVar

import msgspec

from qilbee_core import QilbeeError
from qilbeedb.errors import error_from
from qilbeedb.exceptions import OutcomeUnknownError, ServerError, UnavailableError
from qilbeedb.wire import ErrorAnswer

__all__ = [
    "Call",
    "Credentials",
    "Effect",
    "NoReplyError",
    "Renew",
    "Reply",
    "Send",
    "Step",
    "Tokens",
    "Wait",
    "exchange",
]

T = TypeVar("T")

WAIT_S_MAX = 30.0
_FIRST_WAIT_S = 0.1
_WAIT_S_MAX = 5.0
_STALE_S = 30.0
"""An access token that ends within this is renewed before it is shown again."""
_TAKEN_NOTHING = frozenset({429, 502, 503, 504})
_LOST = frozenset({502, 504})  # from something between, which does not know what the server did


class Effect(Enum):
    """What it does to send a call twice."""

    NONE = auto()
    """It reads."""
    ONCE = auto()
    """It writes the same however often it is sent."""
    EACH = auto()
    """It writes each time, or tells only the first time what it did."""


class Reply(NamedTuple):
    """What a server answered; ``is_repeat`` where an earlier attempt may have done the work."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_repeat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """A request, and how to read its answer.

    ``read`` is given an answer of success, or one whose status is in ``expected``; every other one is an error.
    """

    method: str
    path: str
    read: Callable[[Reply], T]
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    body: bytes | None = None
    effect: Effect = Effect.NONE
    expected: frozenset[int] = frozenset()
    is_public: bool = False
    """Whether it is sent without credentials."""


class Tokens(NamedTuple):
    """What a login gave. ``stale_at_s`` is on the clock of ``time.monotonic``."""

    access: str
    refresh: str | None
    stale_at_s: float

    @classmethod
    def given(cls, access: str, refresh: str | None, expires_in_s: float) -> Tokens:
        """Those that an answer has just brought."""
        return cls(access, refresh, time.monotonic() + max(expires_in_s - _STALE_S, expires_in_s / 2))

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Tokens(stale_at_s={self.stale_at_s:.0f})"


class NoReplyError(Exception):
    """No answer came; ``was_sent`` where the server may have got the call."""

    def __init__(self, said: str, *, was_sent: bool) -> None:
        super().__init__(said)
        self.was_sent = was_sent


class Credentials:
    """What a client shows of itself: an API key, or the tokens of its login."""

    def __init__(self, api_key: str | None) -> None:
        self.api_key = api_key
        self.tokens: Tokens | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that show them."""
        if self.tokens is not None:
            return {"Authorization": f"Bearer {self.tokens.access}"}
        return {} if self.api_key is None else {"X-API-Key": self.api_key}

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Credentials({'tokens' if self.tokens else 'no tokens'}, {'a key' if self.api_key else 'no key'})"


class Send(NamedTuple):
    """Send the call, and come back with its :class:`Reply`, or throw :class:`NoReplyError`."""

    headers: Mapping[str, str]


class Wait(NamedTuple):
    """Wait so many seconds."""

    seconds: float


class Renew(NamedTuple):
    """Get new tokens, unless another call has done so since these were shown."""

    shown: Tokens


Step = Send | Wait | Renew


def exchange(call: Call[T], credentials: Credentials, retries: int) -> Generator[Step, Reply | None, T]:
    """The steps of one call; its result is what the generator returns."""
    attempt, is_lost, is_renewed = 0, False, False
    while True:
        shown = None if call.is_public else credentials.tokens
        if shown is not None and shown.refresh is not None and shown.stale_at_s <= time.monotonic() and not is_renewed:
            is_renewed = True
            yield Renew(shown)
            shown = credentials.tokens
        failure: QilbeeError
        try:
            reply = yield Send({} if call.is_public else credentials.headers)
            assert reply is not None  # what Send comes back with
        except NoReplyError as error:
            is_lost |= error.was_sent
            failure = UnavailableError(f"{call.method} {call.path}: {error}")
            failure.__cause__ = error.__cause__
            wait_s = 0.0
        else:
            if reply.status < HTTPStatus.MULTIPLE_CHOICES or reply.status in call.expected:
                return _read(call, reply._replace(is_repeat=is_lost))
            if reply.status == HTTPStatus.UNAUTHORIZED and shown is not None and shown.refresh and not is_renewed:
                is_renewed = True
                yield Renew(shown)
                continue
            failure = error_of(reply)
            if reply.status not in _TAKEN_NOTHING:
                raise failure
            is_lost |= reply.status in _LOST or isinstance(failure, OutcomeUnknownError)
            wait_s = _retry_after_s(reply)
        wait_s = max(wait_s, min(_FIRST_WAIT_S * 2**attempt, _WAIT_S_MAX) * random.uniform(0.5, 1))  # noqa: S311
        may_repeat = not (is_lost and call.effect is Effect.EACH)
        if not may_repeat or attempt >= retries or wait_s > WAIT_S_MAX:
            if is_lost and call.effect is not Effect.NONE and not isinstance(failure, OutcomeUnknownError):
                remedy = None if may_repeat else "look whether it was done before you call it again"
                raise OutcomeUnknownError(f"the answer was lost: {failure.message}", remedy=remedy) from failure
            raise failure
        attempt += 1
        yield Wait(wait_s)


def error_of(reply: Reply) -> QilbeeError:
    """The error that an answer tells."""
    try:
        told = msgspec.json.decode(reply.body, type=ErrorAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):  # not our server's, but of something between
        told = ErrorAnswer(error=f"the server answered {reply.status}", code="")
    return error_from(
        reply.status, told.code, told.error, remedy=told.remedy or None, retry_after_s=_retry_after_s(reply)
    )


def _retry_after_s(reply: Reply) -> float:
    try:
        return max(0.0, float(reply.headers.get("retry-after", "0")))
    except ValueError:  # a date, which clocks that differ would misread
        return 0.0


def _read(call: Call[T], reply: Reply) -> T:
    try:
        return call.read(reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServerError(
            f"{call.method} {call.path} was answered with what is no answer of QilbeeDB: {error}",
            remedy="check the address, and what stands between",
        ) from error
