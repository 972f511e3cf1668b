"""Logging in, staying logged in, and what an administrator does, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qilbeedb import AsyncQilbeeDB, QilbeeDB
from qilbeedb.exceptions import (
    AuthenticationError,
    ConflictError,
    InvalidError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
)
from qilbeedb.exchange import Credentials, Tokens
from qilbeedb.memory import Episode
from qilbeedb.remote import AsyncRemote, Remote

from .proxy import Proxy
from .serving import PASSWORD, Server

LONG = "a password that is long enough"


@pytest.fixture
def db(server: Server) -> Iterator[QilbeeDB]:
    """The administrator's."""
    with QilbeeDB(server.url) as db:
        db.login("admin", PASSWORD)
        yield db


def credentials_of(db: QilbeeDB | AsyncQilbeeDB) -> Credentials:
    """What it shows to the server."""
    place = db._place
    assert isinstance(place, Remote | AsyncRemote)
    return place.credentials


def tokens_of(db: QilbeeDB | AsyncQilbeeDB) -> Tokens:
    tokens = credentials_of(db).tokens
    assert tokens is not None
    return tokens


def make_stale(db: QilbeeDB | AsyncQilbeeDB) -> None:
    """As if the access token were about to end."""
    credentials_of(db).tokens = tokens_of(db)._replace(stale_at_s=time.monotonic())


def break_token(db: QilbeeDB) -> None:
    """As if the server had changed its mind about the access token."""
    tokens = tokens_of(db)
    end = "AAAA" if tokens.access[-4] != "A" else "BAAA"
    credentials_of(db).tokens = tokens._replace(access=tokens.access[:-4] + end)


# Sessions


def test_nobody_gets_in_without_the_password(server: Server) -> None:
    with QilbeeDB(server.url) as db:
        with pytest.raises(AuthenticationError):
            db.agent_memory("nobodys").get_recent_episodes()
        with pytest.raises(AuthenticationError):
            db.login("admin", "wrong")
        with pytest.raises(AuthenticationError):
            db.login("nobody", PASSWORD)
        db.login("admin", PASSWORD)
        assert db.agent_memory("nobodys").get_recent_episodes() == []


def test_a_session_renews_itself_before_its_token_ends(db: QilbeeDB) -> None:
    first = tokens_of(db).access
    db.agents()
    assert tokens_of(db).access == first
    make_stale(db)
    db.agents()
    assert tokens_of(db).access != first
    db.agents()


def test_a_session_renews_itself_when_its_token_is_refused(db: QilbeeDB) -> None:
    break_token(db)
    broken = tokens_of(db).access
    assert db.agent_memory("renewed").get_statistics().total_episodes == 0
    assert tokens_of(db).access != broken


def test_calls_at_once_renew_a_session_once(server: Server) -> None:
    with Proxy(server.port, None) as proxy, QilbeeDB(proxy.url) as db, ThreadPoolExecutor(8) as pool:
        db.login("admin", PASSWORD)
        make_stale(db)
        assert len(set(map(str, pool.map(lambda _: db.agents(), range(16))))) == 1
        assert proxy.requests == 1 + 1 + 16


def test_a_session_outlives_a_refresh_whose_answer_is_lost(server: Server) -> None:
    with Proxy(server.port, "dropped", share=0.5, seed=7) as proxy, QilbeeDB({"uri": proxy.url, "retries": 12}) as db:
        db.login("admin", PASSWORD)
        for _ in range(10):
            make_stale(db)
            db.agents()
        assert proxy.struck > 3


def test_a_session_goes_on_over_a_restart(tmp_path: Path) -> None:
    with Server(tmp_path) as server, QilbeeDB({"uri": server.url, "retries": 8}) as db:
        db.login("admin", PASSWORD)
        server.kill()
        server.start()
        assert db.agents() == []
        make_stale(db)
        assert db.agents() == []


def test_a_session_renews_itself_with_asyncio(server: Server) -> None:
    async def main() -> None:
        async with AsyncQilbeeDB(server.url) as db:
            await db.login("admin", PASSWORD)
            first = tokens_of(db).access
            make_stale(db)
            await asyncio.gather(*(db.agents() for _ in range(10)))
            assert tokens_of(db).access != first
            await db.logout()
            with pytest.raises(AuthenticationError):
                await db.agents()

    asyncio.run(main())


def test_after_logging_out_the_token_is_worth_nothing(db: QilbeeDB, server: Server) -> None:
    token = tokens_of(db).access
    with QilbeeDB(server.url) as thief:
        credentials_of(thief).tokens = tokens_of(db)
        thief.agents()
        db.logout()
        db.logout()  # again: nothing to end
        with pytest.raises(AuthenticationError):
            thief.agents()
    with pytest.raises(AuthenticationError):
        db.agents()
    db.login("admin", PASSWORD)
    assert tokens_of(db).access != token


def test_a_revoked_session_says_to_log_in_again(db: QilbeeDB, server: Server) -> None:
    with QilbeeDB(server.url) as other:
        other.login("admin", PASSWORD)
        db.revoke_token(tokens_of(other).access)
        with pytest.raises(AuthenticationError, match="log in"):
            other.agents()


def test_an_embedded_database_takes_any_login_and_has_no_accounts(tmp_path: Path) -> None:
    with QilbeeDB(tmp_path / "data") as db:
        db.login("admin", "whatever")
        assert db.health().status == "healthy"
        with pytest.raises(InvalidError, match="qilbee serve"):
            db.list_users()
        db.logout()
        assert db.agents() == []


def test_a_server_tells_its_health_to_everybody(server: Server) -> None:
    with QilbeeDB(server.url) as db:
        health = db.health()
    assert (health.status, list(health.problems)) == ("healthy", [])
    assert health.uptime_seconds > 0


# Users and keys


def test_users_are_made_changed_and_removed(db: QilbeeDB, server: Server) -> None:
    user = db.create_user("maren", LONG, "maren@example.org", ["Agent"], agents=["bot"])
    assert (user.username, user.email, user.roles, user.agents) == ("maren", "maren@example.org", ("Agent",), ("bot",))
    with pytest.raises(ConflictError):
        db.create_user("maren", LONG)
    assert {each.username for each in db.list_users()} == {"admin", "maren"}
    with QilbeeDB(server.url) as maren:
        maren.login("maren", LONG)
        memory = maren.agent_memory("bot")
        stored = memory.store_episode(Episode.observation("bot", "hers"))
        with pytest.raises(PermissionDeniedError):
            maren.agent_memory("other").get_recent_episodes()
        with pytest.raises(PermissionDeniedError):
            memory.clear()
        with pytest.raises(PermissionDeniedError):
            maren.list_users()
        assert maren.agents() == ["bot"]
        assert db.update_user(user.id, email=None, agents=None).email is None
        assert maren.agent_memory("other").get_recent_episodes() == []
        db.update_user_roles(user.id, ["Read"])
        with pytest.raises(PermissionDeniedError):
            memory.delete_episode(stored)
        db.revoke_all_tokens(user.id, "test")
        with pytest.raises(AuthenticationError):
            memory.get_recent_episodes()
        maren.login("maren", LONG)
        maren.change_password(LONG, LONG[::-1])
        with pytest.raises(AuthenticationError):
            memory.get_recent_episodes()
        maren.login("maren", LONG[::-1])
        assert not db.update_user(user.id, is_active=False).is_active
        with pytest.raises(AuthenticationError):
            memory.get_recent_episodes()
    assert db.get_user(user.id).last_login is not None
    assert db.delete_user(user.id)
    assert not db.delete_user(user.id)
    with pytest.raises(NotFoundError):
        db.get_user(user.id)


def test_an_api_key_opens_what_it_is_for(db: QilbeeDB, server: Server) -> None:
    key = db.create_api_key("reader", expires_in_days=30, agents=["bot"], permissions=["read"])
    assert key.key.startswith(key.prefix)
    assert key.expires_at is not None
    assert key.expires_at > datetime.now(UTC) + timedelta(days=29)
    assert "reader" in [each.name for each in db.list_api_keys()]
    with QilbeeDB({"uri": server.url, "api_key": key.key}) as reader:
        memory = reader.agent_memory("bot")
        memory.get_recent_episodes()
        with pytest.raises(PermissionDeniedError):
            memory.store_episode(Episode.observation("bot", "not allowed"))
        with pytest.raises(PermissionDeniedError):
            reader.agent_memory("other").get_recent_episodes()
        assert db.delete_api_key(key.id)
        assert not db.delete_api_key(key.id)
        with pytest.raises(AuthenticationError):
            memory.get_recent_episodes()


def test_an_api_key_that_is_no_header_is_refused_here() -> None:
    with pytest.raises(InvalidError, match="api_key"):
        QilbeeDB({"uri": "http://localhost:7474", "api_key": "qilbee_live_x\r\nX-Other: 1"})


# Lockouts, rate limits, the audit log


def test_a_locked_user_cannot_log_in_until_he_is_unlocked(db: QilbeeDB, server: Server) -> None:
    user = db.create_user("locked", LONG)
    with QilbeeDB(server.url) as locked:
        locked.login("locked", LONG)
        db.lock_account("locked", "for the test")
        assert [each.username for each in db.get_locked_accounts()] == ["locked"]
        status = db.get_lockout_status("locked")
        assert (status.locked, status.lockout_reason) == (True, "for the test")
        with pytest.raises((AuthenticationError, RateLimitedError)):
            locked.login("locked", LONG)
        db.unlock_account("locked")
        locked.login("locked", LONG)
    db.delete_user(user.id)


def test_a_rate_limit_says_when_to_come_again(db: QilbeeDB) -> None:
    policy = db.create_rate_limit_policy("few", {"Custom": "/agents"}, 2, 3600)
    assert policy.endpoint_type == {"Custom": "/agents"}
    assert policy.id in [each.id for each in db.list_rate_limit_policies()]
    db.agents()
    db.agents()
    with pytest.raises(RateLimitedError) as caught:
        db.agents()
    assert 30 < caught.value.retry_after_s <= 2 * 3600
    changed = db.update_rate_limit_policy(policy.id, max_requests=1000, enabled=False)
    assert (changed.max_requests, changed.enabled, changed.name) == (1000, False, "few")
    assert db.get_rate_limit_policy(policy.id) == changed
    db.agents()
    assert db.delete_rate_limit_policy(policy.id)
    assert not db.delete_rate_limit_policy(policy.id)


def test_a_time_of_the_audit_log_that_is_none_is_refused(db: QilbeeDB) -> None:
    with pytest.raises(InvalidError, match="start_time is str"):
        db.get_audit_logs(start_time="now")  # type: ignore[arg-type]


def test_the_audit_log_tells_who_did_what(db: QilbeeDB) -> None:
    user = db.create_user("audited", LONG)
    (event, *_) = db.get_audit_logs(event_type="user_created", limit=1)
    assert (event.username, event.result, event.ip_address) == ("admin", "success", "127.0.0.1")
    assert event.user_agent.startswith("qilbeedb/")
    assert db.get_audit_logs(start_time=datetime.now(UTC) + timedelta(hours=1)) == []
    assert db.get_audit_logs(username="admin", result="success", end_time=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(InvalidError):
        db.get_audit_logs(limit=0)
    db.delete_user(user.id)


def test_administrators_can_use_asyncio_too(server: Server) -> None:
    async def main() -> None:
        async with AsyncQilbeeDB(server.url) as db:
            await db.login("admin", PASSWORD)
            user = await db.create_user("awaited", LONG)
            assert (await db.get_user(user.id)) == user
            key = await db.create_api_key("awaited")
            assert await db.delete_api_key(key.id)
            assert (await db.get_audit_logs(limit=1))[0].username == "admin"
            assert await db.delete_user(user.id)

    asyncio.run(main())
