"""The one protocol: every memory has each of its verbs, with the same arguments, and no other."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import qilbee_core
from qilbeedb import QilbeeDB
from qilbeedb.memory import AgentMemory, AsyncAgentMemory
from qilbeedb.remote import AsyncRemoteMemory, RemoteMemory


def verbs(kind: type) -> dict[str, dict[str, str]]:
    """The public functions of a class, each with how its arguments are written."""
    return {
        name: {
            each.name: f"{each.kind.name} = {each.default}" for each in inspect.signature(member).parameters.values()
        }
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


@pytest.mark.parametrize(("kind", "protocol"), [(RemoteMemory, AgentMemory), (AsyncRemoteMemory, AsyncAgentMemory)])
def test_a_memory_behind_a_server_has_the_verbs_of_the_protocol(kind: type, protocol: type) -> None:
    assert verbs(kind) == verbs(protocol)


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [(qilbee_core.AgentMemory, AgentMemory), (qilbee_core.AsyncAgentMemory, AsyncAgentMemory)],
)
def test_an_embedded_memory_has_the_verbs_of_the_protocol(kind: type, protocol: type) -> None:
    embedded = verbs(kind)
    assert set(embedded) == set(verbs(protocol))  # a verb that one of them gets, all get
    for name, arguments in verbs(protocol).items():
        assert arguments.items() <= embedded[name].items()


def test_the_protocol_for_asyncio_has_the_same_verbs() -> None:
    assert verbs(AsyncAgentMemory) == verbs(AgentMemory)


def test_type_checkers_accept_both_as_the_protocol(tmp_path: Path) -> None:
    def take(memory: AgentMemory, awaited: AsyncAgentMemory | None = None) -> str:  # mypy checks the calls below
        return memory.agent_id

    with qilbee_core.open_store(tmp_path / "data", backend="ephemeral") as store:
        embedded = store.agent_memory("bot")
        assert isinstance(embedded, AgentMemory)
        assert take(embedded) == "bot"
    with QilbeeDB("http://127.0.0.1:1") as db:
        remote = db.agent_memory("bot")
        assert isinstance(remote, RemoteMemory)
        assert isinstance(remote, AgentMemory)
        assert take(remote) == "bot"
