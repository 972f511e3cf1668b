"""Run by the public client's own interpreter: sessions of PyPI ``qilbeedb`` 0.2.1 against our server.

    python public_session.py session URL PASSWORD      every verb once; exits with 0 if each did what it should
    python public_session.py fill URL PASSWORD CYCLE   stores things of every kind, prints what must stay
    python public_session.py check URL PASSWORD        reads such lines, and looks whether all of it is there

It imports nothing of ours.
"""

# ruff: noqa: A001, B905, T201
# mypy: ignore-errors
import json
import sys
import time
from datetime import datetime, timedelta

from qilbeedb import QilbeeDB
from qilbeedb.exceptions import AuthenticationError
from qilbeedb.memory import Episode

PAST = 1_600_000_000


def kinds(agent):
    """The three kinds of episodes, and others with metadata and a time of their own."""
    return [
        Episode.conversation(agent, "Where is my order?", "On its way.", metadata={"order": 48213, "ok": True}),
        Episode.observation(agent, "CPU usage at 85%", metadata={"load": 0.85, "tags": ["a", None, {"b": []}]}),
        Episode.action(agent, "Scaled to 4 instances", "Latency reduced"),
        Episode(agent, "observation", {"observation": "Größe 日本 \U0001f600"}, event_time=PAST),
        Episode(agent, "note", {"deep": {"list": [1, 2.5, "x"]}, "empty": ""}, event_time=PAST + 1, metadata={}),
    ]


def same(found, sent):
    """Whether an episode came back as it was sent."""
    return (
        found is not None
        and found.content == sent.content
        and found.metadata == (sent.metadata or {})
        and found.event_time == sent.event_time
        and found.episode_type == sent.episode_type
        and found.agent_id == sent.agent_id
    )


def refused(what):
    """Whether a call is refused for want of credentials."""
    try:
        what()
    except AuthenticationError:
        return True
    return False


def forbidden(what):
    """Whether a call is refused for want of a role."""
    try:
        what()
    except Exception as error:  # which class is the client's choice
        return "403" in str(error) or "ermission" in str(error)
    return False


def logged_in(url, password, username="admin"):
    db = QilbeeDB(url)
    db.login(username, password)
    return db


def session(url, password):
    """Every verb of the client."""
    db = QilbeeDB(url)
    assert db.health()["status"] == "healthy"
    assert refused(lambda: db.login("admin", "wrong"))
    assert refused(lambda: db.agent_memory("support").get_statistics())
    told = db.login("admin", password)
    assert {"access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "username"} <= set(told)
    assert db.is_authenticated()
    memories(db.agent_memory("support"))
    memories(db.agent_memory("support bot:2"))
    accounts(db, url)
    db.refresh_token()
    assert db.agent_memory("support").get_statistics().total_episodes == 0
    db.logout()
    assert refused(lambda: db.agent_memory("support").get_recent_episodes())


def memories(memory):
    sent = kinds(memory.agent_id)
    began = int(time.time())
    ids = [memory.store_episode(episode) for episode in sent]
    assert len(set(ids)) == len(ids)
    for id, episode in zip(ids, sent):
        found = memory.get_episode(id)
        assert same(found, episode), vars(found)
        assert found.id == id
        assert episode.event_time in (PAST, PAST + 1) or began <= found.event_time <= time.time()
    absent = ids[0][:-4] + ("0000" if ids[0][-4:] != "0000" else "1111")
    assert memory.get_episode(absent) is None
    recent = memory.get_recent_episodes(limit=10)
    assert [each.id for each in recent] == [ids[2], ids[1], ids[0], ids[4], ids[3]]
    assert [each.id for each in memory.get_recent_episodes(limit=2)] == [ids[2], ids[1]]
    assert memory.search_episodes("order", limit=5)[0].id == ids[0]
    assert memory.search_episodes("zebra", limit=5) == []
    semantic = memory.semantic_search("processor load", limit=2)
    assert semantic[0].episode.id == ids[1]
    assert semantic[0].score > 0
    assert memory.semantic_search("processor load", limit=2, min_score=0.99) == []
    hybrid = memory.hybrid_search("CPU usage", limit=3, semantic_weight=0.3)
    assert hybrid[0].episode.id == ids[1]
    assert abs(hybrid[0].score - hybrid[0].keyword_score - hybrid[0].semantic_score) < 1e-9
    similar = memory.find_similar_episodes(ids[1], limit=3)
    assert ids[1] not in [each.episode.id for each in similar]
    assert memory.get_semantic_search_status()["enabled"] is True
    statistics = memory.get_statistics()
    assert statistics.total_episodes == 5
    assert statistics.oldest_episode == PAST
    assert statistics.newest_episode == recent[0].event_time
    assert 0.9 < statistics.avg_relevance <= 1
    again = [memory.store_episode(Episode.observation(memory.agent_id, "The lamp is on.")) for _ in range(3)]
    assert memory.consolidate() == 2
    assert memory.forget(min_relevance=0.1) == 0
    assert memory.delete_episode(ids[0]) is True
    assert memory.delete_episode(ids[0]) is False
    assert memory.get_episode(ids[0]) is None
    assert memory.get_statistics().total_episodes >= 4
    assert any(memory.get_episode(id) is not None for id in again)
    assert memory.clear()
    assert memory.get_recent_episodes() == []


def accounts(db, url):
    user = db.create_user("maren", "a very long password", "maren@example.org", ["Read"])
    assert (user["username"], user["email"], user["roles"]) == ("maren", "maren@example.org", ["Read"])
    assert user["is_active"] is True
    assert {each["username"] for each in db.list_users()} == {"admin", "maren"}
    assert db.get_user(user["id"])["username"] == "maren"
    assert db.update_user_roles(user["id"], ["Developer"])["roles"] == ["Developer"]
    assert db.update_user(user["id"], password="another long password")["id"] == user["id"]
    assert refused(lambda: logged_in(url, "a very long password", "maren"))
    maren = logged_in(url, "another long password", "maren")
    maren.agent_memory("support").store_episode(Episode.observation("support", "Maren was here."))
    assert forbidden(maren.list_users)
    db.revoke_all_tokens(user["id"], "test")
    assert refused(lambda: maren.agent_memory("support").get_statistics())
    other = QilbeeDB(url)
    told = other.login("maren", "another long password")
    db.revoke_token(told["access_token"])
    assert refused(lambda: other.agent_memory("support").get_statistics())

    keys_and_limits(db, url)
    db.lock_account("maren", "for the test")
    assert [each["username"] for each in db.get_locked_accounts()["locked_users"]] == ["maren"]
    status = db.get_lockout_status("maren")["status"]
    assert (status["locked"], status["lockout_reason"]) == (True, "for the test")
    db.unlock_account("maren")
    assert db.get_lockout_status("maren")["status"]["locked"] is False
    assert db.get_locked_accounts()["count"] == 0

    logs = db.get_audit_logs(limit=50)
    assert logs["count"] == len(logs["events"]) > 10
    assert all(set(event) >= {"event_id", "event_type", "timestamp", "user_id", "result"} for event in logs["events"])
    assert db.get_audit_logs(username="admin", event_type="login", result="success")["count"] >= 1
    assert db.get_audit_logs(start_time="2999-01-01T00:00:00Z")["count"] == 0
    assert db.get_failed_logins()
    assert db.get_user_audit_events("admin", limit=5)
    assert db.get_security_events(limit=5)
    assert db.delete_user(user["id"])
    assert {each["username"] for each in db.list_users()} == {"admin"}


def keys_and_limits(db, url):
    key = db.create_api_key("for the test")
    assert key["key"].startswith("qilbee_live_")
    assert key["key"].startswith(key["prefix"])
    assert [each["name"] for each in db.list_api_keys()] == ["for the test"]
    assert all("key" not in each for each in db.list_api_keys())
    by_key = QilbeeDB({"uri": url, "api_key": key["key"]})
    assert by_key.agent_memory("support").get_recent_episodes()[0].content == {"observation": "Maren was here."}
    set_later = QilbeeDB(url)
    set_later.set_api_key(key["key"])
    assert set_later.agent_memory("support").clear()
    assert db.delete_api_key(key["id"])
    assert refused(lambda: by_key.agent_memory("support").get_statistics())

    policy = db.create_rate_limit_policy("many", "GeneralApi", 100_000, 60)
    assert (policy["name"], policy["endpoint_type"], policy["enabled"]) == ("many", "GeneralApi", True)
    own = db.create_rate_limit_policy("own", {"Custom": "/health"}, 100_000, 60, enabled=False)
    assert own["endpoint_type"] == {"Custom": "/health"}
    assert {policy["id"], own["id"]} <= {each["id"] for each in db.list_rate_limit_policies()}
    assert db.get_rate_limit_policy(own["id"])["enabled"] is False
    assert db.update_rate_limit_policy(policy["id"], max_requests=200_000)["max_requests"] == 200_000
    assert db.delete_rate_limit_policy(policy["id"])
    assert db.delete_rate_limit_policy(own["id"])


def fill(url, password, cycle):
    """Something of every kind, as one line of JSON."""
    db = logged_in(url, password)
    for policy in db.list_rate_limit_policies():
        if policy["endpoint_type"] == "Login":  # that many log in here
            db.update_rate_limit_policy(policy["id"], enabled=False)
    agent = f"agent {cycle}"
    memory = db.agent_memory(agent)
    episodes = [[memory.store_episode(each), each.content, each.metadata, each.event_time] for each in kinds(agent)]
    deleted = memory.store_episode(Episode.observation(agent, "to be deleted"))
    memory.delete_episode(deleted)
    secret = f"the password of cycle {cycle}"
    user = db.create_user(f"user{cycle}", secret, None, ["Developer"])
    locked = db.create_user(f"locked{cycle}", secret, None, ["Read"])
    db.lock_account(locked["username"], f"cycle {cycle}")
    key, gone = db.create_api_key(f"key {cycle}"), db.create_api_key(f"gone {cycle}")
    db.delete_api_key(gone["id"])
    ended = QilbeeDB(url)
    revoked = ended.login(user["username"], secret)["access_token"]
    db.revoke_token(revoked)
    live = QilbeeDB(url).login(user["username"], secret)["access_token"]
    policy = db.create_rate_limit_policy(f"policy {cycle}", {"Custom": f"/{cycle}"}, 1000 + cycle, 60)
    newest = db.get_audit_logs(limit=1)["events"][0]
    return {
        "agent": agent, "episodes": episodes, "deleted": deleted, "username": user["username"], "secret": secret,
        "locked": locked["username"], "key": key["key"], "gone": gone["key"], "revoked": revoked, "live": live,
        "policy": policy, "event": newest,
    }  # fmt: skip


def with_token(url, token):
    db = QilbeeDB(url)
    db.session.headers["Authorization"] = f"Bearer {token}"
    return db


def events_of(db, moment):
    """What the audit log has of the second from that moment on."""
    end = datetime.fromisoformat(moment.replace("Z", "+00:00")) + timedelta(seconds=1)
    return db.get_audit_logs(start_time=moment, end_time=end.isoformat(), limit=1000)["events"]


def check(url, password, filled):
    """Whether all that was filled in is there, and all that was ended is not."""
    db = logged_in(url, password)
    policies = {policy["id"]: policy for policy in db.list_rate_limit_policies()}
    locked = {each["username"] for each in db.get_locked_accounts()["locked_users"]}
    for was in filled:
        memory = db.agent_memory(was["agent"])
        assert memory.get_statistics().total_episodes == len(was["episodes"])
        for id, content, metadata, event_time in was["episodes"]:
            found = memory.get_episode(id)
            assert found is not None
            assert (found.content, found.metadata, found.event_time) == (content, metadata or {}, event_time)
        assert memory.get_episode(was["deleted"]) is None
        assert logged_in(url, was["secret"], was["username"]).is_authenticated()
        assert was["locked"] in locked
        assert QilbeeDB({"uri": url, "api_key": was["key"]}).agent_memory(was["agent"]).get_recent_episodes()
        gone = QilbeeDB({"uri": url, "api_key": was["gone"]}).agent_memory(was["agent"])
        assert refused(gone.get_recent_episodes)
        assert refused(with_token(url, was["revoked"]).agent_memory(was["agent"]).get_recent_episodes)
        assert with_token(url, was["live"]).agent_memory(was["agent"]).get_recent_episodes()
        assert policies[was["policy"]["id"]] == was["policy"]
        assert was["event"] in events_of(db, was["event"]["timestamp"])


if __name__ == "__main__":
    verb, url, password, *rest = sys.argv[1:]
    if verb == "session":
        session(url, password)
    elif verb == "fill":
        print(json.dumps(fill(url, password, int(rest[0]))))
    else:
        check(url, password, [json.loads(line) for line in sys.stdin])
