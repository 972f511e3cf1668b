"""Whatever comes in, a hostile request is answered with a 4xx and JSON, and the server goes on as if nothing was.

Each case goes over a real socket, byte for byte as it is written here.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from .serving import Serving, serving

AGENT = "hostile"
EPISODES = f"/memory/{AGENT}/episodes"
ID = "0e320ddf-b885-8cee-9a20-3d61bce200c4"
EPISODE = f"{EPISODES}/{ID}"
_BODY_BYTES_MAX = 2 << 20


class Case(NamedTuple):
    """A request that must be refused."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: str = "content-type: application/json\r\n"
    status: int | None = None

    @property
    def data(self) -> bytes:
        """Its bytes."""
        length = "" if "content-length" in self.headers or "chunked" in self.headers else f"{len(self.body)}"
        length = f"content-length: {length}\r\n" if length else ""
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{self.headers}{length}\r\n"
        )
        return head.encode("latin-1") + self.body


def episode(content: str = '{"observation": "tea"}', **fields: str) -> bytes:
    """The body of a store, its values already JSON."""
    given = {"episodeType": '"observation"', "content": content, **fields}
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in given.items()) + "}").encode()


def huge_numbers() -> list[str]:
    """Integers that no float can be, and one that is too long to be read."""
    return [sign + "9" * digits for digits in (20, 400, 4000, 5000) for sign in ("", "-")]


def nested(depth: int, kind: str = "[]") -> str:
    """A value so deep."""
    return kind[0] * depth + kind[1] * depth if kind == "[]" else '{"a":' * depth + "1" + "}" * depth


def stores() -> Iterator[Case]:
    """Bodies of POST episodes."""
    bodies: dict[str, bytes] = {
        "NaN in content": episode('{"a": NaN}'),
        "Infinity in content": episode('{"a": Infinity}'),
        "-Infinity in content": episode('{"a": -Infinity}'),
        "1e999 in content": episode('{"a": 1e999}'),
        "-1e999 in content": episode('{"a": -1e999}'),
        "NaN in metadata": episode(metadata='{"a": NaN}'),
        "1e999 in metadata": episode(metadata='{"a": [1e999]}'),
        "lone surrogate in content": episode('{"a": "\\ud800"}'),
        "lone low surrogate in content": episode('{"a": "\\udc00 x"}'),
        "lone surrogate in a key of content": episode('{"\\ud800": 1}'),
        "lone surrogate in metadata": episode(metadata='{"a": "\\udfff"}'),
        "lone surrogate in the type": episode(episodeType='"\\ud800"'),
        "lone surrogate in agentId": episode(agentId='"\\ud800"'),
        "lone surrogate in the idempotency key": episode(idempotencyKey='"\\ud800"'),
        "content nested 1,000 deep": episode('{"a": ' + nested(1000) + "}"),
        "content nested 200,000 deep": episode('{"a": ' + nested(200_000) + "}"),
        "content of 200,000 objects": episode(nested(200_000, "{}")),
        "content nested 33 deep": episode('{"a": ' + nested(33) + "}"),
        "metadata nested 1,000 deep": episode(metadata='{"a": ' + nested(1000) + "}"),
        "the body nested 200,000 deep": nested(200_000).encode(),
        "never closed, 200,000 deep": b"[" * 200_000,
        "integer of 5,000 digits in content": episode('{"a": ' + "9" * 5000 + "}"),
        "integer of 65 bits in content": episode('{"a": 18446744073709551616}'),
        "negative integer of 65 bits": episode('{"a": -9223372036854775809}'),
        "integer of 5,000 digits as a time": episode(eventTime="9" * 5000),
        "bad UTF-8 in content": episode('{"a": "').replace(b'"a": "', b'"a": "\xff') + b'"}}',
        "bad UTF-8 in a key": b'{"episodeType": "x", "content": {"\xc3\x28": 1}}',
        "overlong UTF-8": b'{"episodeType": "x", "content": {"a": "\xc0\xaf"}}',
        "UTF-8 cut short": b'{"episodeType": "x", "content": {"a": "\xe2\x82"}}',
        "UTF-16": '{"episodeType": "x", "content": {}}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf" + episode(),
        "nothing": b"",
        "white space": b"  \n ",
        "null": b"null",
        "true": b"true",
        "a number": b"3",
        "a text": b'"episode"',
        "a list": b"[]",
        "a list of episodes": b"[" + episode() + b"]",
        "cut short": episode()[:-5],
        "two values": episode() + episode(),
        "a comma too many": b'{"episodeType": "x", "content": {},}',
        "single quotes": b"{'episodeType': 'x', 'content': {}}",
        "a comment": b'{"episodeType": "x", /* no */ "content": {}}',
        "a control character in a text": b'{"episodeType": "x", "content": {"a": "\x01"}}',
        "no type": b'{"content": {}}',
        "no content": b'{"episodeType": "x"}',
        "an unknown field": episode(episodetype='"x"'),
        "a field of an answer": episode(transactionTime="1"),
        "content is null": episode("null"),
        "content is a text": episode('"tea"'),
        "content is a list": episode("[1]"),
        "content is a number": episode("1"),
        "metadata is a list": episode(metadata="[]"),
        "metadata is a text": episode(metadata='"x"'),
        "the type is a number": episode(episodeType="1"),
        "the type is null": episode(episodeType="null"),
        "the type is empty": episode(episodeType='""'),
        "the type is long": episode(episodeType='"' + "x" * 65 + '"'),
        "another agent": episode(agentId='"other"'),
        "agentId is a number": episode(agentId="1"),
        "time 1e308": episode(eventTime="1e308"),
        "time -1e308": episode(eventTime="-1e308"),
        "time 1e18": episode(eventTime="1e18"),
        "time before year 1": episode(eventTime="-62135596801"),
        "time after year 9999": episode(eventTime="253402300800000"),
        "time is a text": episode(eventTime='"1700000000"'),
        "time is true": episode(eventTime="true"),
        "time is a list": episode(eventTime="[1]"),
        "time is NaN": episode(eventTime="NaN"),
        "expiry 1e308": episode(expiresAt="1e308"),
        "expiry is a text": episode(expiresAt='"tomorrow"'),
        "relevance is a text": episode(relevance='"0.5"'),
        "relevance above 1": episode(relevance="1.0000001"),
        "relevance below 0": episode(relevance="-0.1"),
        "relevance 1e999": episode(relevance="1e999"),
        "relevance is true": episode(relevance="true"),
        "relevance is null": episode(relevance="null"),
        "an unknown memory type": episode(memoryType='"memory"'),
        "memory type is a number": episode(memoryType="0"),
        "pinned is a number": episode(pinned="1"),
        "pinned is a text": episode(pinned='"true"'),
        "an id of nobody's": episode(episodeId='"1"'),
        "an empty id": episode(episodeId='""'),
        "an id of version 4": episode(episodeId='"9f1b3f5a-6f0e-4d7e-8c1a-2b3c4d5e6f70"'),
        "an id in capitals": episode(episodeId=f'"{ID.upper()}"'),
        "an id that is a number": episode(episodeId="7"),
        "an id of another time": episode(episodeId=f'"{ID}"', eventTime="1"),
        "an empty idempotency key": episode(idempotencyKey='""'),
        "a long idempotency key": episode(idempotencyKey='"' + "k" * 1025 + '"'),
        "content of more than 1 MiB": episode('{"a": "' + "x" * (1 << 20) + '"}'),
        "metadata of more than 64 KiB": episode(metadata='{"a": "' + "x" * (64 << 10) + '"}'),
        "1,001 keys": episode("{" + ", ".join(f'"k{n}": 1' for n in range(1001)) + "}"),
        "1,001 keys in metadata": episode(metadata="{" + ", ".join(f'"k{n}": 1' for n in range(1001)) + "}"),
    }
    for name, body in bodies.items():
        yield Case(name, "POST", EPISODES, body)


def other_bodies() -> Iterator[Case]:
    """Bodies of the other routes."""
    for route in ("search", "semantic-search", "hybrid-search"):
        path = f"{EPISODES}/{route}"
        yield Case(f"{route}: no query", "POST", path, b"{}")
        yield Case(f"{route}: query is a number", "POST", path, b'{"query": 1}')
        yield Case(f"{route}: query is null", "POST", path, b'{"query": null}')
        yield Case(f"{route}: lone surrogate", "POST", path, b'{"query": "\\ud800"}')
        for limit in ("0", "-1", "1001", "1.5", '"3"', "null", "true", "1e999", "9" * 400):
            yield Case(f"{route}: limit {limit[:9]}", "POST", path, f'{{"query": "x", "limit": {limit}}}'.encode())
    yield Case("search: start 1e308", "POST", f"{EPISODES}/search", b'{"query": "x", "start": 1e308}')
    for number in huge_numbers():
        body = b'{"query": "x", "start": %s}' % number.encode()
        yield Case(f"search: start of {number[:3]}, {len(number)} long", "POST", f"{EPISODES}/search", body)
    yield Case("semantic-search: NaN", "POST", f"{EPISODES}/semantic-search", b'{"query": "x", "minScore": NaN}')
    yield Case("semantic-search: a text", "POST", f"{EPISODES}/semantic-search", b'{"query": "x", "minScore": "0.5"}')
    for weight in ("-0.1", "1.1", '"0.5"', "NaN", "[]"):
        body = f'{{"query": "x", "semanticWeight": {weight}}}'.encode()
        yield Case(f"hybrid-search: weight {weight}", "POST", f"{EPISODES}/hybrid-search", body)
    yield Case("batch: no list", "POST", f"{EPISODES}/batch", b'{"episodes": {}}')
    yield Case(
        "batch: one is wrong", "POST", f"{EPISODES}/batch", b'{"episodes": [' + episode() + b', {"content": {}}]}'
    )
    yield Case("batch: 1,001", "POST", f"{EPISODES}/batch", b'{"episodes": [' + b",".join([episode()] * 1001) + b"]}")
    yield Case("get: ids is a text", "POST", f"{EPISODES}/get", b'{"ids": "abc"}')
    yield Case("get: an id is none", "POST", f"{EPISODES}/get", b'{"ids": ["1"]}')
    yield Case("get: 1,001 ids", "POST", f"{EPISODES}/get", json.dumps({"ids": [ID] * 1001}).encode())
    yield Case("patch: content is a list", "PATCH", EPISODE, b'{"content": []}')
    yield Case("patch: an unknown field", "PATCH", EPISODE, b'{"eventTime": 1}')
    yield Case("patch: nothing", "PATCH", EPISODE, b"{}")
    yield Case("patch: not there", "PATCH", EPISODE, b'{"episodeType": "x"}', status=404)
    yield Case("boost: a text", "POST", f"{EPISODE}/boost", b'{"amount": "0.5"}')
    yield Case("boost: 2", "POST", f"{EPISODE}/boost", b'{"amount": 2}')
    yield Case("boost: 0", "POST", f"{EPISODE}/boost", b'{"amount": 0}')
    yield Case("pin: a number", "POST", f"{EPISODE}/pin", b'{"pinned": 1}')
    yield Case("recall: minRelevance 2", "POST", f"/memory/{AGENT}/recall", b'{"minRelevance": 2}')
    yield Case("recall: memory type", "POST", f"/memory/{AGENT}/recall", b'{"memoryType": ""}')
    yield Case("forget: a text", "POST", f"/memory/{AGENT}/forget", b'{"minRelevance": "0.1"}')
    yield Case("forget: -1", "POST", f"/memory/{AGENT}/forget", b'{"minRelevance": -1}')
    yield Case("forget: maxEpisodes -1", "POST", f"/memory/{AGENT}/forget", b'{"maxEpisodes": -1}')
    yield Case("forget: maxBytes 1e999", "POST", f"/memory/{AGENT}/forget", b'{"maxBytes": 1e999}')
    yield Case("forget: dryRun is a number", "POST", f"/memory/{AGENT}/forget", b'{"dryRun": 0}')


def queries() -> Iterator[Case]:
    """Addresses and queries."""
    agents = {
        "NUL": "%00",
        "NUL inside": "a%00b",
        "two dots": "..",
        "two dots, quoted": "%2e%2e",
        "a dot, quoted": "%2e",
        "a slash, quoted": "a%2Fb",
        "10,000 characters": "a" * 10_000,
        "256 bytes": "a" * 256,
        "256 bytes of UTF-8": quote("é" * 128),
        "bad UTF-8": "%ff%fe",
        "a surrogate in UTF-8": "%ed%a0%80",
        "a line feed": "a%0ab",
        "an escape": "%1b",
        "nothing": "",
    }
    for name, agent in agents.items():
        yield Case(f"agent: {name}", "GET", f"/memory/{agent}/statistics")
        yield Case(f"agent: {name}, stored", "POST", f"/memory/{agent}/episodes", episode())
    for limit in ("0", "-1", "1001", "x", "", "1.5", "NaN", "1e999", "%00", "%ff", "9" * 400, "+3", " 3"):
        yield Case(f"recent: limit {limit[:9]!r}", "GET", f"{EPISODES}/recent?limit={quote(limit, safe='%')}")
    yield Case("recent: before is none", "GET", f"{EPISODES}/recent?before=1")
    yield Case("recent: an unknown key", "GET", f"{EPISODES}/recent?limits=3")
    yield Case("recent: memory type", "GET", f"{EPISODES}/recent?memoryType=x")
    yield Case("recent: 101 keys", "GET", f"{EPISODES}/recent?" + "&".join(f"k{n}=1" for n in range(101)))
    for moment in ("x", "nan", "inf", "-inf", "1e308", "-1e308", "1e999", "true", *huge_numbers()):
        told = f"{moment[:9]}, {len(moment)} long"
        yield Case(f"episodes: start {told}", "GET", f"{EPISODES}?start={moment}")
        yield Case(f"history: after {told}", "GET", f"{EPISODES}/{ID}/history?after={moment}")
    for cursor in ("x", "~", "2026-01-01~", "2026-01-01T00:00:00%2B00:00~", "9999-99-99~x", "%00", "%ff"):
        yield Case(f"episodes: cursor {cursor}", "GET", f"{EPISODES}?cursor={cursor}")
    yield Case("an id that is none", "GET", f"{EPISODES}/1")
    yield Case("an id of bad UTF-8", "GET", f"{EPISODES}/%ff")
    yield Case("an id with NUL", "GET", f"{EPISODES}/{ID}%00")
    yield Case("history of none", "GET", f"{EPISODES}/1/history")
    yield Case("similar to none", "GET", f"{EPISODES}/1/similar")
    yield Case("similar: limit 0", "GET", f"{EPISODE}/similar?limit=0")
    yield Case("delete: none", "DELETE", f"{EPISODES}/1")
    yield Case("delete: erase is a text", "DELETE", f"{EPISODE}?erase=yes")
    yield Case("clear: an unknown key", "DELETE", f"/memory/{AGENT}?all=true")


def requests() -> Iterator[Case]:
    """Requests that are not as HTTP wants them, or not as we do."""
    gzip = "content-type: application/json\r\ncontent-encoding: gzip\r\n"
    yield Case("a false Content-Encoding", "POST", EPISODES, episode(), gzip)
    yield Case("Content-Encoding br", "POST", EPISODES, episode(), gzip.replace("gzip", "br"))
    for media_type in ("text/plain", "application/xml", "multipart/form-data; boundary=x", "", "application/jsonx"):
        yield Case(f"Content-Type {media_type!r}", "POST", EPISODES, episode(), f"content-type: {media_type}\r\n")
    long = f"content-type: application/json\r\ncontent-length: {20 << 20}\r\n"
    yield Case("20 MB announced", "POST", EPISODES, b"{", long, 413)
    yield Case("20 MB sent", "POST", EPISODES, b"x" * (20 << 20), status=413)
    yield Case("a byte too many", "POST", EPISODES, episode() + b" " * _BODY_BYTES_MAX, status=413)
    chunked = "content-type: application/json\r\ntransfer-encoding: chunked\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    yield Case("20 MB in chunks", "POST", EPISODES, chunk * 320, chunked, 413)
    yield Case("a chunk of a size that is none", "POST", EPISODES, b"zz\r\n", chunked)
    yield Case("two lengths", "POST", EPISODES, b"{}", "content-length: 2\r\ncontent-length: 3\r\n")
    yield Case("a negative length", "POST", EPISODES, b"{}", "content-length: -1\r\n")
    yield Case("length and chunks", "POST", EPISODES, b"0\r\n\r\n", "content-length: 5\r\n" + chunked)
    yield Case("a method of nobody's", "BREW", EPISODES)
    yield Case("TRACE", "TRACE", EPISODES)
    yield Case("a tunnel", "CONNECT", "example.org:443")
    yield Case("a path of 70,000 letters", "GET", "/" + "a" * 70_000)
    yield Case("PUT", "PUT", EPISODES, episode(), status=405)
    yield Case("OPTIONS", "OPTIONS", EPISODES, status=405)
    yield Case("no such path", "GET", "/memory", status=404)
    yield Case("no such path below", "GET", f"{EPISODE}/nothing", status=404)
    yield Case("a slash too many", "GET", f"{EPISODES}/recent/", status=404)
    yield Case("two slashes", "GET", f"//memory/{AGENT}/statistics")
    yield Case("out of the tree", "GET", "/../../etc/passwd")
    yield Case("a path of bytes", "GET", "/memory/\xff\xfe/statistics")
    yield Case("a header of 1 MB", "GET", EPISODES, headers=f"x: {'y' * (1 << 20)}\r\n")
    yield Case("100,000 headers", "GET", EPISODES, headers="a: b\r\n" * 100_000)
    yield Case("a header without a name", "GET", EPISODES, headers=": x\r\n")
    yield Case("a folded header", "GET", f"{EPISODES}/recent?limit=0", headers="x: y\r\n z\r\n")
    yield Case("an upgrade", "GET", f"{EPISODES}/x", headers="connection: upgrade\r\nupgrade: websocket\r\n")


CASES = [*stores(), *other_bodies(), *queries(), *requests()]


def test_there_are_as_many_cases_as_promised_and_no_name_twice() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 150
    assert len(set(names)) == len(names)


def refused(answer: bytes, status: int | None) -> None:
    """What every refusal is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    found = int(head[9:12])
    assert 400 <= found < 500, answer[:300]
    assert status in (None, found), answer[:300]
    told = json.loads(body)
    assert told["error"]
    assert told["code"]
    assert b"content-type: application/json" in head


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_request_is_refused_with_a_reason(served: Serving, case: Case) -> None:
    refused(served.raw(case.data), case.status)


def test_none_of_them_left_anything_behind_and_the_server_goes_on(served: Serving) -> None:
    for case in CASES[:40]:
        served.raw(case.data)
    assert served.store.agents() == []
    assert served.client.get("/health").json()["status"] == "healthy"
    assert served.client.post(EPISODES, json={"episodeType": "x", "content": {"a": 1}}).status_code == 201
    assert served.client.delete(f"/memory/{AGENT}").json()["episodes"] == 1


def test_where_a_key_is_there_twice_the_last_one_counts(served: Serving) -> None:
    body = b'{"episodeType": "first", "content": {"a": 1, "a": 2}, "episodeType": "second"}'
    headers = {"content-type": "application/json"}
    stored = served.client.post("/memory/twice/episodes", content=body, headers=headers).json()
    found = served.client.get(f"/memory/twice/episodes/{stored['episodeId']}").json()
    assert (found["episodeType"], found["content"]) == ("second", {"a": 2})


def test_a_request_without_end_is_refused_in_time() -> None:
    tables: dict[str, dict[str, object]] = {
        "storage": {"backend": "ephemeral"},
        "server": {"receive_timeout_s": 2},
    }
    head = f"POST {EPISODES} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    requests = (
        f"{head}transfer-encoding: chunked\r\n\r\n5\r\n     \r\n".encode(),
        f"{head}content-length: 100\r\n\r\n{{".encode(),
        head.encode(),
        b"",
    )
    with serving(tables) as slow, ThreadPoolExecutor(len(requests)) as pool:
        *answers, nothing = pool.map(slow.raw, requests)  # at once, for each takes as long as it may
        for answer in answers:
            refused(answer, 408)
        assert nothing == b""
        assert slow.client.get("/health").status_code == 200


def resident_bytes() -> int:
    """What this process, with the server in it, has in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_many_at_once_take_little_memory(served: Serving) -> None:
    worst = [
        case.data for case in CASES if case.name in {"20 MB in chunks", "content of 200,000 objects", "100,000 headers"}
    ]

    def send_all() -> None:
        for data in worst * 2:
            served.raw(data)

    send_all()
    before = resident_bytes()
    threads = [threading.Thread(target=send_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert resident_bytes() - before < 64 << 20
