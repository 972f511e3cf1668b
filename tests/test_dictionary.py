"""The dictionaries we ship: what they are, that they never change, and what they are good for."""

import importlib.util
import json
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

import qilbee_core
from qilbee_core import DataError, Document, ProviderNotFoundError
from qilbee_core.codecs import dictionaries
from qilbee_core.codecs.dictionaries import dictionary, shipped_dictionary
from qilbee_core.codecs.zstd import ZstdCodec
from qilbee_core.serializers.msgpack import MsgpackSerializer

# Never edit a line, only add one: records that were encoded with a dictionary need its very bytes.
SHIPPED = {
    ("zstd", 1): "35254edacca3fc3bc6852858f467f3a1d4131ac8196f642ab87db9ed747ee48b",
}


@pytest.mark.parametrize(("codec_name", "id"), SHIPPED)
def test_a_shipped_dictionary_never_changes(codec_name: str, id: int) -> None:
    assert sha256(dictionary(codec_name, id)).hexdigest() == SHIPPED[codec_name, id]


def test_every_dictionary_file_is_on_the_list() -> None:
    files = Path(dictionaries.__file__).parent.glob("*.dict")
    assert {file.name for file in files} == {f"{codec_name}-{number}.dict" for codec_name, number in SHIPPED}


def test_the_newest_is_used() -> None:
    assert shipped_dictionary("zstd") == (1, dictionary("zstd", 1))
    assert shipped_dictionary("lz4") is None


@pytest.mark.parametrize(("codec_name", "id"), [("zstd", 2), ("zstd", 0), ("lz4", 1), ("", 1)])
def test_an_unknown_dictionary_asks_for_a_newer_release(codec_name: str, id: int) -> None:
    with pytest.raises(ProviderNotFoundError, match="upgrade qilbee-core"):
        dictionary(codec_name, id)


def test_a_damaged_dictionary_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray(dictionary("zstd", 1))
    damaged[20_000] ^= 1
    (tmp_path / "zstd-1.dict").write_bytes(damaged)
    monkeypatch.setattr(dictionaries, "files", lambda _: tmp_path)
    dictionary.cache_clear()
    with pytest.raises(DataError, match="reinstall"):
        dictionary("zstd", 1)


def builder() -> ModuleType:
    path = Path(__file__).parent.parent / "tools" / "build_dictionary.py"
    spec = importlib.util.spec_from_file_location("build_dictionary", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_sample_the_dictionary_is_made_of_is_a_record() -> None:
    loads = MsgpackSerializer().loads
    documents = [loads(record) for record in builder().records()]
    assert len(documents) > 900
    assert {document[0] for document in documents} == {"observation", "conversation", "action"}
    assert all(len(document) == 4 for document in documents)


def test_conversations_it_was_not_made_of_take_less_than_two_thirds() -> None:
    documents: list[Document] = []
    for line in (Path(qilbee_core.__file__).parent / "samples" / "conversations.jsonl").read_text().splitlines():
        turn = json.loads(line)
        content = {"user_input": turn["user_input"], "agent_response": turn["agent_response"]}
        documents.append(
            ["conversation", content, 1_772_000_000_000_000 + len(documents) * 61_234_567, turn["metadata"]]
        )
    records = [MsgpackSerializer().dumps(document) for document in documents]
    plain, primed = ZstdCodec(), ZstdCodec(dictionary("zstd", 1))
    raw_bytes = sum(map(len, records))
    assert sum(len(primed.encode(record)) for record in records) < raw_bytes * 2 / 3
    assert sum(len(plain.encode(record)) for record in records) > raw_bytes * 0.70
