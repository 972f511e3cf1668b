"""Connections as the protocol keeps them: requests in a row, all at once, in pieces, and none for a long time."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import pytest

from qilbee_core import Episode
from qilbeedb.server import protocol
from qilbeedb.server.protocol import _go_on

from .serving import PATIENCE_S, Serving, complete, serving, wait_until

EPHEMERAL = {"storage": {"backend": "ephemeral"}}
BODY = json.dumps({"episodeType": "observation", "content": {"observation": "tea at five"}}).encode()
POST = (
    b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join((f"GET {path} HTTP/1.1", "host: localhost", *headers, "", "")).encode()


def connected(served: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), PATIENCE_S)


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Those of so many answers, in their order."""
    data = b""
    while len(found := re.findall(rb"HTTP/1.1 (\d+) ", data)) < count or not complete(data[data.rindex(b"HTTP/1.1") :]):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError(data)
        data += part
    return [int(status) for status in found]


def sent_as(served: Serving, parts: Sequence[bytes], count: int) -> list[int]:
    with connected(served) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        return statuses(connection, count)


def test_requests_that_come_together_are_answered_each_in_their_order(served: Serving) -> None:
    # Some are answered at once, some wait for a thread of the pool, and one is refused.
    requests = [POST, get("/health"), get("/nothing"), get("/agents"), POST, get("/memory/a/statistics")]
    assert sent_as(served, [b"".join(requests)], 6) == [201, 200, 404, 200, 201, 200]


def test_a_request_that_comes_in_pieces_is_answered_once_it_is_whole(served: Serving) -> None:
    for at in range(1, len(POST)):
        assert sent_as(served, [POST[:at], POST[at:]], 1) == [201], at


def test_a_request_that_waits_lets_others_go_first_and_is_answered(served: Serving) -> None:
    for _ in range(20):
        with connected(served) as slow, connected(served) as quick:
            slow.sendall(get("/agents"))  # from the pool
            quick.sendall(POST)
            assert statuses(quick, 1) == [201]
            assert statuses(slow, 1) == [200]


@pytest.mark.parametrize("end", ["done", "cancelled", "failed"])
def test_what_has_begun_to_wait_goes_on_in_a_task_which_can_be_cancelled(end: str) -> None:
    seen: list[str] = []

    async def main() -> None:
        first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                seen.append(await first)
            except (asyncio.CancelledError, ValueError) as error:
                await asyncio.sleep(0)
                seen.append(type(error).__name__)
                raise
            await asyncio.sleep(0.001)
            seen.append("done")

        running = work()
        task = asyncio.get_running_loop().create_task(_go_on(running, running.send(None)))
        await asyncio.sleep(0)
        if end == "cancelled":
            task.cancel()
        elif end == "failed":
            first.set_exception(ValueError())
        else:
            first.set_result("told")
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert {"done": None, "cancelled": asyncio.CancelledError, "failed": ValueError}[end] in (ended, type(ended))

    asyncio.run(main())
    assert seen == {"done": ["told", "done"], "cancelled": ["CancelledError"], "failed": ["ValueError"]}[end]


def test_a_client_that_goes_away_in_the_middle_harms_nobody(served: Serving) -> None:
    for request in (POST[:-1], POST, get("/agents")):
        with connected(served) as connection:
            connection.sendall(request)
    assert served.client.get("/health").status_code == 200


def test_a_connection_without_requests_is_closed_and_one_with_requests_is_kept() -> None:
    with serving({**EPHEMERAL, "server": {"keep_alive_s": 2, "receive_timeout_s": 600}}) as served:
        served.store.agent_memory("a").store_episode(Episode.observation("a", "tea"))
        with connected(served) as idle, connected(served) as busy:
            for connection in (idle, busy):
                connection.sendall(POST)
                assert statuses(connection, 1) == [201]
            began_s = time.monotonic()
            idle.settimeout(0)
            closed = False
            while not closed or time.monotonic() - began_s < 4.5:  # more than twice as long as without requests
                busy.sendall(get("/health"))
                assert statuses(busy, 1) == [200]
                try:
                    closed = closed or idle.recv(1) == b""
                except BlockingIOError:
                    assert time.monotonic() - began_s < PATIENCE_S, "it is not closed"


# --- slow ones, and too many of them


def whole(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, whether it has read all that was sent or not."""
    answer = bytearray()
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            answer += part
    return bytes(answer)


@contextmanager
def busy(
    served: Serving, monkeypatch: pytest.MonkeyPatch, count: int
) -> Iterator[tuple[list[socket.socket], threading.Event]]:
    """So many connections, each with a request that takes until the event, or as long as this lasts."""
    asked, going = threading.Semaphore(0), threading.Event()

    def slow_agents() -> list[str]:
        asked.release()
        assert going.wait(PATIENCE_S)
        return []

    monkeypatch.setattr(served.store, "agents", slow_agents)
    with ExitStack() as stack:
        connections = [stack.enter_context(connected(served)) for _ in range(count)]
        stack.callback(going.set)
        for connection in connections:
            connection.sendall(get("/agents"))
            assert asked.acquire(timeout=PATIENCE_S)
        yield connections, going


def test_a_connection_more_than_allowed_is_told_so_and_health_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({**EPHEMERAL, "server": {"connections_max": 3}}) as served:
        with busy(served, monkeypatch, 3) as (allowed, going):
            for path, status, words in (("/memory/a/statistics", 503, b"too many connections"), ("/health", 200, b"")):
                with connected(served) as another:
                    another.sendall(get(path))
                    answer = whole(another)  # it does not stay
                assert answer.startswith(b"HTTP/1.1 %d " % status), answer
                assert words in answer
                assert (b"retry-after: 1" in answer) == (status == 503)
            with connected(served) as silent:  # nor does one that asks nothing
                assert whole(silent) == b""
            going.set()
            assert [statuses(connection, 1) for connection in allowed] == [[200]] * 3
        wait_until(lambda: not served.server.server_state.connections)
        assert served.client.get("/memory/a/statistics").status_code == 200
        assert "\nqilbee_connections 1\n" in served.client.get("/metrics").text


def test_far_more_connections_than_allowed_are_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilbeedb.server.protocol._SPARE", 2)
    monkeypatch.setattr("qilbeedb.server.protocol._PATIENCE_S", 600.0)
    with serving({**EPHEMERAL, "server": {"connections_max": 1}}) as served, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(served))
        wait_until(lambda: len(served.server.server_state.connections) == 3)
        last = stack.enter_context(connected(served))
        assert whole(last) == b""
        assert len(served.server.server_state.connections) == 3


def test_who_lets_the_server_wait_longest_makes_room() -> None:
    limits = {"connections_max": 3, "receive_timeout_s": 600}
    with serving({**EPHEMERAL, "server": limits}) as served, ExitStack() as stack:
        slow = []
        for part in (b"", POST[:40], POST[:-1]):
            slow.append(stack.enter_context(connected(served)))
            slow[-1].sendall(part)
            wait_until(lambda: len(served.server.server_state.connections) == len(slow))

        def there_is_room() -> bool:
            with ExitStack() as tried, suppress(ConnectionError):  # as may be who is refused, or is heard late
                others = [tried.enter_context(connected(served)) for _ in slow]
                for other in others:
                    other.sendall(get("/memory/a/statistics"))
                return all(statuses(other, 1) == [200] for other in others)
            return False

        wait_until(there_is_room)  # which there is not until those have been waited for long
        assert whole(slow[0]) == b""
        for connection in slow[1:]:
            answer = whole(connection)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"others wait" in answer


def test_who_takes_nothing_of_an_answer_is_not_waited_for_for_ever() -> None:
    with serving({**EPHEMERAL, "server": {"receive_timeout_s": 2}}) as served, ExitStack() as stack:
        for _ in range(8):
            served.store.agent_memory("a").store_episode(Episode.observation("a", "x" * 1_000_000))
        for request in (
            get("/memory/a/episodes/recent"),
            get("/memory/a/episodes/recent", "connection: close"),
            get("/memory/a/episodes/recent") * 3,
        ):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(PATIENCE_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", served.port))
            connection.sendall(request)
            assert connection.recv(1, socket.MSG_PEEK)  # it is on its way
        wait_until(lambda: not served.server.server_state.connections)


def test_of_answers_that_nobody_takes_so_many_bytes_are_kept_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_max = 20 << 20
    monkeypatch.setattr(protocol, "_UNTAKEN_BYTES_MAX", bytes_max)
    with serving(EPHEMERAL) as served, ExitStack() as stack:
        memory = served.store.agent_memory("a")
        for _ in range(8):
            memory.store_episode(Episode.observation("a", "x" * 1_000_000))
        crowd = [stack.enter_context(socket.socket()) for _ in range(10)]
        for connection in crowd:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(PATIENCE_S)
            connection.connect(("127.0.0.1", served.port))
            connection.sendall(get("/memory/a/episodes/recent", "connection: close"))
            assert connection.recv(1, socket.MSG_PEEK)  # it is on its way

        def kept() -> int:
            return sum(each.transport.get_write_buffer_size() for each in list(served.server.server_state.connections))

        wait_until(lambda: kept() <= bytes_max)
        assert 1 < len(served.server.server_state.connections) < len(crowd)
        assert complete(whole(crowd[-1]))
        assert not complete(whole(crowd[0]))


def test_who_takes_an_answer_slowly_gets_all_of_it() -> None:
    with serving({**EPHEMERAL, "server": {"receive_timeout_s": 1.5}}) as served:
        for _ in range(8):
            served.store.agent_memory("a").store_episode(Episode.observation("a", "x" * 1_000_000))
        with connected(served) as connection:
            connection.sendall(get("/memory/a/episodes/recent", "connection: close"))
            answer, until_s = bytearray(), time.monotonic() + 4.5
            while part := connection.recv(1 << 16):
                answer += part
                if time.monotonic() < until_s:
                    time.sleep(0.05)  # slower than it comes, and longer than a client that takes nothing has
        assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["episodes"]) == 8


# --- strange ones


def test_requests_without_number_behind_one_that_waits_end_the_connection(served: Serving) -> None:
    with connected(served) as connection:
        connection.sendall(get("/agents") + get("/health") * 1000)
        assert whole(connection).count(b"HTTP/1.1") < 1000


def test_who_is_cut_off_gets_no_answers_into_a_closed_connection(
    served: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(served) as connection:
        connection.sendall(get("/health") * 100)
        assert whole(connection) == b""
    assert sent_as(served, [get("/health")], 1) == [200]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "refused",
    [
        b"this is no request\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n",
        get("/" + "a" * 70_000),
    ],
    ids=["no request", "a tunnel", "a long path"],
)
def test_a_refusal_is_never_taken_for_the_answer_to_an_earlier_request(
    served: Serving, monkeypatch: pytest.MonkeyPatch, refused: bytes
) -> None:
    with busy(served, monkeypatch, 1) as ((connection,), _):
        connection.sendall(refused)
        assert whole(connection) == b""


def test_what_came_before_a_request_is_none_of_its_head(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"episodeType": "x", "content": {"a": "b" * 150_000}}).encode()
    head = b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    asked, going = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        asked.set()
        assert going.wait(PATIENCE_S)

    with connected(served) as holding, connected(served) as connection:
        for _ in range(50):  # until the system takes much at once
            connection.sendall(head + body)
            assert statuses(connection, 1) == [201]
        monkeypatch.setattr(served.store, "async_agent_memory", hold)
        holding.sendall(get("/memory/whoever/statistics"))  # holds up the loop, so that the others are read at once
        assert asked.wait(PATIENCE_S)
        monkeypatch.undo()
        connection.sendall(head + body + head + body[:100])
        going.set()
        assert statuses(connection, 1) == [201]
        connection.sendall(body[100:])
        assert statuses(connection, 1) == [201]


def test_what_comes_behind_a_body_is_no_header_of_its_request(served: Serving) -> None:
    head = b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
    answer = served.raw(head + chunks + b"content-encoding: gzip\r\nx-request-id: of-the-trailer\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b"of-the-trailer" not in answer


@pytest.mark.parametrize("part", [b"x: " + b"y" * 1000, b"x: y\r\n" * 100])
def test_headers_behind_a_body_are_limited_like_those_before_it(served: Serving, part: bytes) -> None:
    head = b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(served) as connection:
        connection.sendall(head + b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY))
        with pytest.raises(ConnectionError):
            connection.sendall(part * 100_000)


def test_a_body_in_small_chunks_is_taken(served: Serving) -> None:
    body = json.dumps({"episodeType": "x", "content": {"a": "b" * 200_000}}).encode()
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (body[at : at + 16] for at in range(0, len(body), 16))
    )
    head = b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    assert served.raw(head + chunks + b"0\r\n\r\n").startswith(b"HTTP/1.1 201 ")
