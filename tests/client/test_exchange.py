"""What a client does about failures: what it sends again, how long it waits before, and what it tells in the end.

No network is needed: the tests answer the steps of :func:`exchange` themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec
import pytest

from qilbeedb.account_calls import health
from qilbeedb.exceptions import (
    AuthenticationError,
    ConflictError,
    InvalidError,
    OutcomeUnknownError,
    QilbeeError,
    RateLimitedError,
    ServerError,
    UnavailableError,
)
from qilbeedb.exchange import Call, Credentials, Effect, NoReplyError, Renew, Reply, Send, Step, Tokens, Wait, exchange

RETRIES = 3
DONE = Reply(200, {}, b'"done"')
LOST = NoReplyError("the connection was reset", was_sent=True)
REFUSED = NoReplyError("connection refused", was_sent=False)
OVERLOADED = Reply(503, {}, b"")


def call(
    effect: Effect = Effect.NONE, *, expected: Iterable[int] = (), is_public: bool = False
) -> Call[tuple[str, bool]]:
    return Call(
        method="POST",
        path="/somewhere",
        read=lambda reply: (msgspec.json.decode(reply.body, type=str), reply.is_repeat),
        effect=effect,
        expected=frozenset(expected),
        is_public=is_public,
    )


def told(status: int, code: str, message: str, **headers: str) -> Reply:
    return Reply(status, headers, msgspec.json.encode({"error": message, "code": code}))


def run(
    what: Call[tuple[str, bool]], *came: Reply | NoReplyError, credentials: Credentials | None = None
) -> tuple[tuple[str, bool] | QilbeeError, list[Step]]:
    """The result of a call whose attempts have these ends, and the steps it took; all of them must be used."""
    steps = exchange(what, credentials or Credentials(None), RETRIES)
    taken: list[Step] = []
    ends = list(came)
    try:
        step = next(steps)
        while True:
            taken.append(step)
            if not isinstance(step, Send):
                if isinstance(step, Renew) and credentials is not None:
                    credentials.tokens = Tokens.given("renewed", "r2", 900)
                step = steps.send(None)
                continue
            end = ends.pop(0)
            step = steps.throw(end) if isinstance(end, NoReplyError) else steps.send(end)
    except StopIteration as stop:
        assert not ends
        return stop.value, taken
    except QilbeeError as error:
        assert not ends
        return error, taken


def waits(steps: list[Step]) -> list[float]:
    return [step.seconds for step in steps if isinstance(step, Wait)]


@pytest.mark.parametrize("effect", Effect)
@pytest.mark.parametrize("failure", [REFUSED, OVERLOADED, Reply(429, {}, b"")], ids=["refused", "503", "429"])
def test_what_the_server_did_not_take_is_sent_again_whatever_it_does(
    effect: Effect, failure: Reply | NoReplyError
) -> None:
    result, steps = run(call(effect), failure, failure, DONE)
    assert result == ("done", False)
    assert [type(step) for step in steps] == [Send, Wait, Send, Wait, Send]


@pytest.mark.parametrize("effect", [Effect.NONE, Effect.ONCE])
@pytest.mark.parametrize("failure", [LOST, Reply(502, {}, b""), Reply(504, {}, b"")], ids=["reset", "502", "504"])
def test_what_may_be_sent_twice_is_sent_again_after_a_lost_answer(
    effect: Effect, failure: Reply | NoReplyError
) -> None:
    result, _ = run(call(effect), failure, DONE)
    assert result == ("done", True)


@pytest.mark.parametrize("failure", [LOST, Reply(502, {}, b"")], ids=["reset", "502"])
def test_what_would_happen_twice_is_not_sent_again_after_a_lost_answer(failure: Reply | NoReplyError) -> None:
    error, steps = run(call(Effect.EACH), failure)
    assert isinstance(error, OutcomeUnknownError)
    assert "look whether it was done" in str(error)
    assert len(steps) == 1


def test_a_write_that_is_given_up_says_whether_it_may_exist() -> None:
    unsent, _ = run(call(Effect.ONCE), *[REFUSED] * (RETRIES + 1))
    assert type(unsent) is UnavailableError
    lost, _ = run(call(Effect.ONCE), LOST, *[REFUSED] * RETRIES)
    assert type(lost) is OutcomeUnknownError
    assert "connection refused" in str(lost)


def test_a_read_that_is_given_up_says_what_was_wrong_last() -> None:
    error, steps = run(call(), *[LOST] * RETRIES, OVERLOADED)
    assert type(error) is UnavailableError
    assert len(waits(steps)) == RETRIES


def test_waits_grow_and_half_of_them_is_chance() -> None:
    _, steps = run(call(), *[REFUSED] * (RETRIES + 1))
    for number, seconds in enumerate(waits(steps)):
        assert 0.05 * 2**number <= seconds <= 0.1 * 2**number


def test_the_server_says_how_long_to_wait_at_least() -> None:
    _, steps = run(call(), Reply(503, {"retry-after": "7"}, b""), DONE)
    assert waits(steps) == [7.0]


def test_nobody_waits_for_longer_than_half_a_minute() -> None:
    error, steps = run(call(), told(429, "RATE_LIMITED", "too many logins", **{"retry-after": "900"}))
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_s == 900
    assert waits(steps) == []


def test_a_refusal_is_told_at_once_as_the_error_it_is() -> None:
    error, steps = run(call(Effect.ONCE), told(409, "CONFLICT", "episode 7 differs"))
    assert type(error) is ConflictError
    assert str(error).startswith("episode 7 differs: ")
    assert len(steps) == 1


def test_an_answer_of_something_between_is_an_error_by_its_status() -> None:
    assert type(run(call(), Reply(404, {}, b"<html>"))[0]).__name__ == "NotFoundError"
    assert isinstance(run(call(), Reply(307, {"location": "/"}, b""))[0], InvalidError)


def test_what_is_no_answer_of_ours_is_told_so() -> None:
    error, _ = run(call(), Reply(200, {}, b"<html>"))
    assert isinstance(error, ServerError)
    assert "check the address" in str(error)


def test_an_expected_status_is_an_answer() -> None:
    result, _ = run(call(expected=[404]), Reply(404, {}, b'"not there"'))
    assert result == ("not there", False)


def test_a_server_that_takes_no_writes_has_answered_too() -> None:
    body = b'{"status": "unhealthy", "version": "1", "uptime_seconds": 7, "problems": ["the disk is full"]}'
    steps = exchange(health(), Credentials(None), RETRIES)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(Reply(503, {"retry-after": "1"}, body))
    assert (stop.value.value.status, stop.value.value.problems) == ("unhealthy", ["the disk is full"])


# Sessions


def session(expires_in_s: float) -> Credentials:
    credentials = Credentials(None)
    credentials.tokens = Tokens.given("first", "r1", expires_in_s)
    return credentials


def test_a_token_that_ends_soon_is_renewed_before_it_is_shown() -> None:
    credentials = session(expires_in_s=900)
    assert credentials.tokens is not None
    credentials.tokens = credentials.tokens._replace(stale_at_s=time.monotonic())
    result, steps = run(call(), DONE, credentials=credentials)
    assert result == ("done", False)
    assert isinstance(steps[0], Renew)
    assert steps[1] == Send({"Authorization": "Bearer renewed"})


def test_a_fresh_token_is_shown_as_it_is() -> None:
    _, steps = run(call(), DONE, credentials=session(900))
    assert steps == [Send({"Authorization": "Bearer first"})]


def test_a_token_that_is_refused_is_renewed_once() -> None:
    refused = told(401, "AUTHENTICATION", "the token has ended")
    result, steps = run(call(Effect.EACH), refused, DONE, credentials=session(900))
    assert result == ("done", False)
    assert [type(step) for step in steps] == [Send, Renew, Send]
    error, _ = run(call(), refused, refused, credentials=session(900))
    assert isinstance(error, AuthenticationError)


def test_an_api_key_has_nothing_to_renew() -> None:
    error, steps = run(call(), told(401, "AUTHENTICATION", "no such key"), credentials=Credentials("qilbee_live_x"))
    assert isinstance(error, AuthenticationError)
    assert steps == [Send({"X-API-Key": "qilbee_live_x"})]


def test_a_login_shows_no_credentials() -> None:
    _, steps = run(call(is_public=True), DONE, credentials=session(0))
    assert steps == [Send({})]


def test_credentials_do_not_show_their_secrets() -> None:
    credentials = session(900)
    credentials.api_key = "qilbee_live_secret"
    assert "secret" not in repr(credentials)
    assert "first" not in repr(credentials)
    assert "r1" not in repr(credentials.tokens)
