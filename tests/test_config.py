"""Settings: where they come from, which one wins, and that nothing wrong in them is passed over."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from msgspec import Meta
from msgspec.structs import FieldInfo, fields

from qilbee_core import (
    BackendOptions,
    InvalidError,
    MemorySettings,
    PluginSettings,
    Provider,
    ProviderNotFoundError,
    SearchSettings,
    Settings,
    SettingsError,
    StorageBackend,
    StorageSettings,
    hookimpl,
    load_plugins,
    open_store,
)

PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
TABLES: dict[str, type[StorageSettings] | type[MemorySettings] | type[SearchSettings] | type[PluginSettings]] = {
    "storage": StorageSettings,
    "memory": MemorySettings,
    "search": SearchSettings,
    "plugins": PluginSettings,
}

# As the owner's specification has them.
SPECIFICATION = [
    """
[storage]
data_path = "/var/lib/qilbeedb/data"
""",
    """
[storage]
enable_wal = true           # Enable write-ahead logging
sync_writes = true          # Sync each write (safer, slower)
wal_sync_interval_ms = 1000 # Sync interval for async writes
""",
    """
[storage]
enable_compression = true
compression_type = "lz4"    # Options: none, lz4, snappy, zstd
""",
]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def of(text: str, **environ: str) -> Settings:
    return Settings.load(tomllib.loads(text), environ=environ)


# --- the specification


@pytest.mark.parametrize("text", SPECIFICATION)
def test_each_block_of_the_specification_is_accepted_as_written(tmp_path: Path, text: str) -> None:
    settings = Settings.from_toml(written(tmp_path, text), environ={})
    for key, value in tomllib.loads(text)["storage"].items():
        assert getattr(settings.storage, key) == value
    with open_store(settings, data_path=tmp_path / "data") as store:
        assert store.durability().level == ("sync" if "sync_writes" in text else "interval")


def test_the_blocks_of_the_specification_together_are_accepted(tmp_path: Path) -> None:
    text = "[storage]" + "".join(block.replace("[storage]", "") for block in SPECIFICATION)
    settings = Settings.from_toml(written(tmp_path, text), environ={})
    assert settings.storage.data_path == "/var/lib/qilbeedb/data"
    assert (settings.storage.level, settings.storage.codec) == ("sync", "lz4")


@pytest.mark.parametrize("codec", ["none", "lz4", "snappy", "zstd"])
def test_each_compression_type_of_the_specification_opens(tmp_path: Path, codec: str) -> None:
    with open_store(tmp_path / "data", compression_type=codec) as store:
        assert store.settings.storage.codec == codec


# --- which one wins


def test_a_keyword_beats_the_environment_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "[storage]\ncache_bytes = 2000000\nrecent_cache_bytes = 2\nserializer = 'json'\n")
    assert StorageSettings().wal_sync_interval_ms == 1000
    monkeypatch.setenv("QILBEE_STORAGE_CACHE_BYTES", "3000000")
    monkeypatch.setenv("QILBEE_STORAGE_RECENT_CACHE_BYTES", "3")
    with open_store(Settings.from_toml(path), data_path=tmp_path / "data", cache_bytes=4_000_000) as store:
        found = store.settings.storage
    assert found.cache_bytes == 4_000_000
    assert found.recent_cache_bytes == 3
    assert found.serializer == "json"
    assert found.wal_sync_interval_ms == 1000


def test_settings_that_a_program_puts_together_itself_are_what_it_gives_and_the_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QILBEE_SEARCH_INDEXING", "inline")
    monkeypatch.setenv("QILBEE_MEMORY_UNDO_DAYS", "3")
    made = Settings(memory=MemorySettings(max_episodes=7))
    assert (made.memory.max_episodes, made.memory.undo_days, made.search.indexing) == (7, 30, "background")
    assert (Settings.load().memory.undo_days, Settings.load().search.indexing) == (3, "inline")


def test_a_path_is_opened_with_the_environment_and_the_keywords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_DATA_PATH", str(tmp_path / "not this"))
    monkeypatch.setenv("QILBEE_STORAGE_SYNC_WRITES", "1")
    with open_store(tmp_path / "this") as store:
        assert store.durability().level == "sync"
    with open_store(tmp_path / "this", sync_writes=False) as store:
        assert store.durability().level == "interval"
    assert not (tmp_path / "not this").exists()


def test_without_a_path_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_DATA_PATH", str(tmp_path / "here"))
    with open_store():
        assert (tmp_path / "here" / "qilbee.json").exists()


def test_settings_that_are_given_are_final_but_for_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_SYNC_WRITES", "true")
    settings = Settings(storage=StorageSettings(data_path=str(tmp_path / "data")))
    with open_store(settings) as store:
        assert store.durability().level == "interval"


def test_the_environment_is_that_of_the_process_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILBEE_STORAGE_BACKEND", "leveldb")
    assert Settings.load().storage.backend == "leveldb"
    assert Settings.load(environ={}).storage.backend is None


def test_with_storage_changes_what_is_named_and_nothing_else() -> None:
    settings = of("[storage]\nserializer = 'json'\n[plugins]\ndisabled = ['a']")
    changed = settings.with_storage({"cache_bytes": 2_000_000})
    assert (changed.storage.serializer, changed.storage.cache_bytes) == ("json", 2_000_000)
    assert changed.plugins == settings.plugins
    assert settings.storage.cache_bytes == StorageSettings().cache_bytes
    assert settings.with_storage({}) is settings


# --- the environment


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("QILBEE_STORAGE_SYNC_WRITES", "true", "sync_writes", True),
        ("QILBEE_STORAGE_SYNC_WRITES", "1", "sync_writes", True),
        ("QILBEE_STORAGE_ENABLE_WAL", "false", "enable_wal", False),
        ("QILBEE_STORAGE_ENABLE_WAL", "0", "enable_wal", False),
        ("QILBEE_STORAGE_WAL_SYNC_INTERVAL_MS", "250", "wal_sync_interval_ms", 250),
        ("QILBEE_STORAGE_COMPRESSION_TYPE", "none", "compression_type", "none"),
        ("QILBEE_STORAGE_COMPRESSION_TYPE", "7", "compression_type", "7"),
        ("QILBEE_STORAGE_DURABILITY", "none", "durability", "none"),
        ("QILBEE_STORAGE_BACKEND", "null", "backend", "null"),
        ("QILBEE_STORAGE_DATA_PATH", "/tmp/with space/\u6771", "data_path", "/tmp/with space/\u6771"),
        ("QILBEE_STORAGE_ENGINE", '{"block_bytes": 4096}', "engine", {"block_bytes": 4096}),
        ("QILBEE_PLUGINS_DISABLED", '["acme-codec"]', "disabled", ["acme-codec"]),
    ],
)
def test_a_variable_is_read_as_its_key_says(variable: str, text: str, key: str, value: object) -> None:
    settings = Settings.load(environ={variable: text, "QILBEE": "", "PATH": "", "QILBEE_OTHER_KEY": "of somebody else"})
    table = settings.plugins if key == "disabled" else settings.storage
    assert getattr(table, key) == value
    assert type(getattr(table, key)) is type(value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(("QILBEE_STORAGE_SYNC_WRITES", text) for text in ("yes", "on", "", "2", "tru")),
        *(("QILBEE_STORAGE_CACHE_BYTES", text) for text in ("64 MiB", "", "0x10", "1.5", "7", "9" * 5000, "-1", "nan")),
        *(
            ("QILBEE_STORAGE_ENGINE", text)
            for text in ("block_bytes=7", "[]", "7", '{"a": {}}', '{"a": null}', "\udcff")
        ),
        *(("QILBEE_PLUGINS_DISABLED", text) for text in ("acme", "{}", "[7]", "")),
        ("QILBEE_STORAGE_DATA_PATH", ""),
        ("QILBEE_STORAGE_DURABILITY", "snyc"),
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_a_variable_that_cannot_be_read_is_named(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable} is "):
        Settings.load(environ={variable: text})


def test_a_variable_that_names_no_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match="QILBEE_STORAGE_SYNCWRITES would set: did you mean 'sync_writes'"):
        Settings.load(environ={"QILBEE_STORAGE_SYNCWRITES": "true"})


# --- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[storage]\ncompresion_type = 'zstd'",
            "storage has no key 'compresion_type': did you mean 'compression_type'?",
        ),
        ("[storage]\nsync_write = true", "storage has no key 'sync_write': did you mean 'sync_writes'?"),
        ("[storage]\nzzz = 1", "storage has no key 'zzz': the keys are data_path, backend, "),
        ("[storge]\n", "there is no table 'storge': did you mean 'storage'?"),
        ("zzz = 1", "there is no table 'zzz': the keys are storage, memory"),
        ("[plugins]\ndisable = []", "plugins has no key 'disable': did you mean 'disabled'?"),
        ("storage = 7", "storage is not a table: write [storage] and its keys below it"),
        ("[[storage]]\nsync_writes = true", "storage is not a table"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        of(text)
    assert str(raised.value).startswith(message)


WRONG: dict[str, list[object]] = {
    "data_path": ["", 7, b"data", None, "a\0b", ["data"]],
    "backend": [7, True, ["rocksdb"]],
    "dsn": [7, True, ["postgresql://db"]],
    "serializer": [None, 7],
    "enable_wal": ["true", 1, None],
    "sync_writes": ["false", 0, None],
    "wal_sync_interval_ms": [9, 0, -5, 1000.0, "1000", True, None, 3_600_001, 1 << 70],
    "durability": ["", "SYNC", "always", True, 1],
    "enable_compression": ["no", 0],
    "compression_type": [None, 7, ["lz4"]],
    "compression_scope": ["blocks", "", None, 7],
    "cache_bytes": [0, 1 << 19, 64.0, "64", (1 << 40) + 1, None],
    "recent_cache_bytes": [-1, 1.0, "0", (1 << 40) + 1, None],
    "engine": [None, [], 7, "x", {"a": None}, {"a": [1]}, {7: 1}],
}


def test_every_key_of_storage_has_a_wrong_value_here() -> None:
    assert list(WRONG) == [field.name for field in fields(StorageSettings)]


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=ascii
)
def test_a_value_of_a_wrong_type_or_out_of_bounds_is_refused_whichever_way_it_comes(key: str, value: object) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: Settings.load({"storage": {key: value}}, environ={}),
        lambda: StorageSettings(**{key: value}),  # type: ignore[arg-type]
        lambda: Settings().with_storage({key: value}),
        lambda: open_store(**{"backend": "ephemeral", key: value}),  # type: ignore[arg-type]
    ]
    said = rf"^storage\.{key}: " if key == "dsn" else rf"^storage\.{key} is "  # a dsn may hold a password
    for attempt in attempts:
        with pytest.raises(SettingsError, match=said):
            attempt()


def test_what_no_file_could_hold_is_refused_too_and_told_in_short() -> None:
    nested: list[Any] = []
    for _ in range(1_000):
        nested = [nested]
    for key in WRONG:
        for value in (10**5_000, nested, range(3), "\ud800", "x" * 1_000_000):
            if isinstance(value, str) and key in ("data_path", "backend", "dsn", "serializer", "compression_type"):
                continue  # a text like others, as far as the settings know
            with pytest.raises(SettingsError, match=rf"^storage\.{key}") as caught:
                StorageSettings(**{key: value})  # type: ignore[arg-type]
            assert len(caught.value.message.partition(": ")[0]) < 200


@pytest.mark.parametrize(
    "recover", [10**5_000, "x" * 1_000_000, ["tail"], True], ids=lambda value: type(value).__name__
)
def test_a_recovery_that_nobody_knows_is_refused_in_short(recover: Any) -> None:
    with pytest.raises(InvalidError, match='give "tail", or leave it out') as caught:
        open_store(backend="ephemeral", recover=recover)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["acme", None, [7], {}, 7])
def test_what_is_no_list_of_names_is_refused_as_disabled_plugins(value: object) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: Settings.load({"plugins": {"disabled": value}}, environ={}),
        lambda: PluginSettings(disabled=value),  # type: ignore[arg-type]
    ]
    for attempt in attempts:
        with pytest.raises(SettingsError, match=r"^plugins\.disabled is "):
            attempt()


@pytest.mark.parametrize("value", [None, {}, {"sync_writes": True}, PluginSettings()], ids=ascii)
def test_what_is_no_table_is_refused_as_one(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^storage is"):
        Settings(storage=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("tables", [7, True, "storage", [], b"storage", StorageSettings()], ids=ascii)
def test_what_is_no_dict_of_tables_is_refused_as_one(tables: Any) -> None:
    with pytest.raises(SettingsError, match=r"^the settings are .*: give a dict of tables$"):
        Settings.load(tables, environ={})


@pytest.mark.parametrize("name", [7, None, b"storage", ("storage",), 10**5_000], ids=lambda name: type(name).__name__)
def test_a_name_that_is_no_text_is_unknown(name: Any) -> None:
    with pytest.raises(SettingsError, match=r"^there is no table .*: the keys are storage"):
        Settings.load({name: {}}, environ={})
    with pytest.raises(SettingsError, match=r"^storage has no key .*: the keys are data_path"):
        Settings.load({"storage": {name: 1}}, environ={})


def test_a_text_that_is_one_of_few_is_refused_with_all_of_them() -> None:
    with pytest.raises(SettingsError, match="use one of sync, interval, async, none"):
        StorageSettings(durability="snyc")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="use one of auto, block, value"):
        StorageSettings(compression_scope="blocks")  # type: ignore[arg-type]


CONTRADICTIONS: list[dict[str, Any]] = [
    {"sync_writes": True, "enable_wal": False},
    {"sync_writes": True, "durability": "interval"},
    {"sync_writes": True, "durability": "async"},
    {"sync_writes": True, "durability": "none"},
    {"enable_wal": False, "durability": "sync"},
    {"enable_wal": False, "durability": "interval"},
    {"enable_wal": False, "durability": "async"},
]
AGREEMENTS: list[tuple[dict[str, Any], str]] = [
    ({}, "interval"),
    ({"sync_writes": True}, "sync"),
    ({"enable_wal": False}, "none"),
    ({"sync_writes": True, "durability": "sync"}, "sync"),
    ({"enable_wal": False, "durability": "none"}, "none"),
    ({"durability": "sync"}, "sync"),
    ({"durability": "interval"}, "interval"),
    ({"durability": "async"}, "async"),
    ({"durability": "none"}, "none"),
]


@pytest.mark.parametrize("keys", CONTRADICTIONS, ids=str)
def test_two_keys_that_contradict_each_other_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="leave"):
        StorageSettings(**keys)
    one, other = keys.items()
    environ = {f"QILBEE_STORAGE_{other[0].upper()}": json.dumps(other[1]).strip('"')}
    with pytest.raises(SettingsError, match="leave"):
        Settings.load({"storage": dict([one])}, environ=environ)


@pytest.mark.parametrize(("keys", "level"), AGREEMENTS, ids=str)
def test_the_keys_of_durability_mean_the_level_that_the_page_says(keys: dict[str, Any], level: str) -> None:
    assert StorageSettings(**keys).level == level
    with open_store(backend="ephemeral", **keys) as store:
        assert store.durability().level == level


def test_compression_that_is_switched_off_is_none_whatever_its_type() -> None:
    assert StorageSettings(enable_compression=False, compression_type="zstd").codec == "none"


REFUSED: list[dict[str, Any]] = [
    *CONTRADICTIONS,
    {"cache_bytes": 7},
    {"no_such_key": 1},
    {"backend": "rocks"},
    {"compression_type": "lzz4"},
    {"serializer": "jsn"},
]


@pytest.mark.parametrize("keys", REFUSED, ids=str)
def test_nothing_is_made_by_settings_that_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        open_store(tmp_path / "data", **keys)
    assert list(tmp_path.iterdir()) == []


class Gone:
    """A plugin whose engine cannot be imported, as LevelDB without plyvel."""

    @hookimpl
    def qilbee_register_backends(self) -> Iterable[Provider[StorageBackend]]:
        def create(options: BackendOptions) -> StorageBackend:
            raise ImportError("no acme", name="acme")

        return [Provider("acme.gone", create, install="pip install acme")]


def test_an_engine_that_is_not_installed_does_not_keep_the_directory_for_itself(tmp_path: Path) -> None:
    plugins = load_plugins(extra=[Gone()])
    with pytest.raises(ProviderNotFoundError, match="pip install acme"):
        open_store(tmp_path / "data", backend="acme.gone", plugins=plugins)
    with open_store(tmp_path / "data", backend="rocksdb", plugins=plugins) as store:
        assert store.stats()["backend"] == "rocksdb"


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
def test_settings_of_the_engine_are_its_own_to_check(tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    with open_store(tmp_path / "data", backend=engine, engine={"block_bytes": 8192}):
        pass
    with pytest.raises(InvalidError, match="block_bytes"):
        open_store(tmp_path / "data", backend=engine, engine={"block_byte": 8192})


# --- files


@pytest.mark.parametrize("path", [None, 7, True, b"config.toml", ["config.toml"], "a\0b", "\ud800"], ids=ascii)
def test_what_is_no_path_of_a_file_is_refused(path: Any) -> None:
    with pytest.raises(SettingsError, match=r"(^the file of settings is|is not a path: ).*(give its|check the) path$"):
        Settings.from_toml(path)


def test_a_file_that_is_not_there_or_is_no_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SettingsError, match=re.escape(repr(os.fspath(path)))):
            Settings.from_toml(path)


@pytest.mark.parametrize("content", [b"[storage", b"\xff\xfe", b"a = ", b"[storage]\nbackend = 'a'\nbackend = 'b'"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"config\.toml' is not TOML"):
        Settings.from_toml(path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert Settings.from_toml(written(tmp_path, ""), environ={}) == Settings()


def test_a_path_may_be_text_or_a_path(tmp_path: Path) -> None:
    path = written(tmp_path, "[storage]\nserializer = 'json'")
    assert Settings.from_toml(path, environ={}) == Settings.from_toml(str(path), environ={})
    assert StorageSettings(data_path=tmp_path).data_path == str(tmp_path)  # type: ignore[arg-type]
    assert Settings().with_storage({"data_path": tmp_path}).storage.data_path == str(tmp_path)


# --- the page


def plain_name(kind: Any) -> str:
    """A type as the page writes it."""
    if get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        bounds = [
            f"{meta.ge} and up" if meta.le is None else f"{meta.ge} to {meta.le}"
            for meta in metas
            if isinstance(meta, Meta) and meta.ge is not None
        ]
        return ", ".join([plain_name(kind), *bounds])
    if get_origin(kind) is Literal:
        return ", ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) is Sequence:
        return f"list of {plain_name(get_args(kind)[0])}s"
    if get_origin(kind) is Mapping:
        return "table"
    if type(None) in get_args(kind):
        return ", or ".join(plain_name(part) for part in get_args(kind) if part is not type(None))
    names: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
    return names[kind]


def toml_of(field: FieldInfo) -> str:
    default = None if field.default is None else field.default if field.default != () else []
    if field.name in {"embedders", "engine", "policies"}:
        default = {}
    return "left out" if default is None else json.dumps(default)


@pytest.mark.parametrize("table", TABLES)
def test_the_page_lists_every_key_with_its_type_and_its_default(table: str) -> None:
    section = PAGE.split(f"\n## [{table}]\n")[1].split("\n## ")[0]
    lines = section.split("| key | type | default | what it does |\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip().replace("`", "") for cell in line[1:-1].split(" | ")] for line in lines]
    assert [row[:3] for row in rows] == [
        [field.name, plain_name(field.type), toml_of(field)] for field in fields(TABLES[table])
    ]
    assert all(row[3].endswith(".") for row in rows)


def test_a_wrong_value_in_a_table_is_told_without_what_else_is_in_it() -> None:
    given = {"search": {"embedders": {"openai": {"api_key": "very secret", "model": None}}}}
    with pytest.raises(SettingsError, match=r"search\.embedders: Expected") as refused:
        Settings.load(given, environ={})
    assert "very secret" not in str(refused.value)


def test_the_tables_of_the_page_are_those_of_the_settings() -> None:
    assert re.findall(r"^## \[(.*)\]$", PAGE, re.M) == [field.name for field in fields(Settings)] == list(TABLES)


@pytest.mark.parametrize("engine", ["rocksdb", "leveldb"])
def test_the_page_lists_every_setting_of_each_engine(tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"rocksdb": "rocksdict", "leveldb": "plyvel"}[engine])
    rows = re.findall(rf"^\| `{engine}` \| `(\w+)` \| `(\d+)` \|", PAGE, re.M)
    with open_store(tmp_path / "data", backend=engine, engine={key: int(default) for key, default in rows}):
        pass
    with pytest.raises(SettingsError) as raised:
        open_store(tmp_path / "data", backend=engine, engine={"zzz_no_such": 1})
    known = set(re.findall(r"\b[a-z]+_(?:bytes|jobs|files|keys|bits)\w*\b", str(raised.value)))
    assert known <= {key for key, _ in rows}


def test_the_levels_of_the_page_are_those_of_the_settings() -> None:
    shown = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", PAGE.split("### Durability")[1].split("###")[0], re.M)
    asked_for = {level: asked.strip("`") for level, asked in shown}
    assert list(asked_for) == ["sync", "interval", "async", "none"]
    for level, asked in asked_for.items():
        keys = tomllib.loads(asked) if "=" in asked else {}
        assert StorageSettings(**keys).level == level


def test_the_example_of_the_page_is_accepted() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.M | re.S)
    settings = Settings.load(tomllib.loads(example), environ={})
    assert settings.storage.engine == {"background_jobs": 4}
