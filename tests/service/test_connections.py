"""Connections as the protocol keeps them: requests in a row, all at once, in pieces, and none for a long time."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Sequence

import pytest

from qilbee_core import Episode
from qilbeedb.server.protocol import _go_on

from .serving import PATIENCE_S, Serving, complete, serving

EPHEMERAL = {"storage": {"backend": "ephemeral"}}
BODY = json.dumps({"episodeType": "observation", "content": {"observation": "tea at five"}}).encode()
POST = (
    b"POST /memory/a/episodes HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


def connected(served: Serving) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), PATIENCE_S)


def statuses(connection: socket.socket, count: int) -> list[int]:
    """Those of so many answers, in their order."""
    data = b""
    while len(found := re.findall(rb"HTTP/1.1 (\d+) ", data)) < count or not complete(data[data.rindex(b"HTTP/1.1") :]):
        part = connection.recv(65536)
        assert part, data
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
    with serving({**EPHEMERAL, "server": {"keep_alive_s": 1, "receive_timeout_s": 600}}) as served:
        served.store.agent_memory("a").store_episode(Episode.observation("a", "tea"))
        with connected(served) as idle, connected(served) as busy:
            for connection in (idle, busy):
                connection.sendall(POST)
                assert statuses(connection, 1) == [201]
            began_s = time.monotonic()
            idle.settimeout(0)
            closed = False
            while not closed or time.monotonic() - began_s < 2.5:  # more than twice as long as without requests
                busy.sendall(get("/health"))
                assert statuses(busy, 1) == [200]
                try:
                    closed = closed or idle.recv(1) == b""
                except BlockingIOError:
                    assert time.monotonic() - began_s < PATIENCE_S, "it is not closed"
