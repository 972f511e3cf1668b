"""Discovery, as promised: what is found, what is refused, and what each refusal names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qilbee_core import (
    BackendOptions,
    Codec,
    Episode,
    InvalidError,
    PluginError,
    Provider,
    ProviderNotFoundError,
    hookimpl,
    load_plugins,
    open_store,
)


class Reverse:
    name = "acme.reverse"

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes, size: int) -> bytes:
        assert len(data) == size
        return data[::-1]


class ReversePlugin:
    @hookimpl
    def qilbee_register_codecs(self) -> list[Provider[Codec]]:
        return [Provider("acme.reverse", Reverse, "bytes, backwards")]


def plugin(hook: str, function: Callable[..., object]) -> object:
    """A plugin that implements one hook."""
    return type("Plugin", (), {hook: staticmethod(hookimpl(function))})()


# What is found


def test_our_own_come_through_the_same_hooks() -> None:
    plugins = load_plugins()
    assert {"rocksdb", "leveldb", "ephemeral"} <= plugins.backends.providers.keys()
    assert {"none", "lz4", "snappy", "zstd"} <= plugins.codecs.providers.keys()
    assert {"msgpack", "json"} <= plugins.serializers.providers.keys()
    assert plugins.codecs.distributions["zstd"] == "qilbee-core"


def test_an_object_given_as_extra_is_a_plugin_of_this_call_only() -> None:
    plugins = load_plugins(extra=[ReversePlugin()])
    assert plugins.codecs.create("acme.reverse").encode(b"abc") == b"cba"
    assert plugins.codecs.distributions["acme.reverse"] == __name__
    assert "acme.reverse" not in load_plugins().codecs.providers


def test_a_store_uses_what_it_is_given() -> None:
    plugins = load_plugins(extra=[ReversePlugin()])
    with open_store(backend="ephemeral", compression_type="acme.reverse", plugins=plugins) as store:
        memory = store.agent_memory("bot")
        stored = memory.store_episode(Episode.conversation("bot", "Price?", "Ten a month."))
        read = memory.get_episode(stored)
    assert read is not None
    assert read.content["agent_response"] == "Ten a month."


# What is refused


@pytest.mark.parametrize("plugins", [7, "acme", [ReversePlugin()]], ids=lambda value: type(value).__name__)
def test_a_store_takes_plugins_as_they_are_loaded(plugins: Any) -> None:
    with pytest.raises(InvalidError, match=r"load_plugins\(\)"):
        open_store(backend="ephemeral", plugins=plugins)


@pytest.mark.parametrize(
    "name", [None, 7, b"lz4", ["lz4"], {"lz4": 1}, 10**5_000, "x" * 1_000_000], ids=lambda name: type(name).__name__
)
def test_what_cannot_be_a_name_is_not_found_and_told_in_short(name: Any) -> None:
    plugins = load_plugins()
    for registry in (plugins.backends, plugins.codecs, plugins.serializers, plugins.embedders, plugins.policies):
        with pytest.raises(ProviderNotFoundError) as caught:
            registry.find(name)
        assert len(str(caught.value)) < 1_000


def test_a_misspelt_hook_is_named() -> None:
    with pytest.raises(PluginError, match="qilbee_register_codec'"):
        load_plugins(extra=[plugin("qilbee_register_codec", lambda: ())])


def test_a_hook_without_its_marker_is_named_instead_of_passed_over() -> None:
    unmarked = type("Plugin", (), {"qilbee_register_codecs": staticmethod(list)})()
    with pytest.raises(PluginError, match=r"qilbee_register_codecs of plugin .* is not marked as a hook.*hookimpl"):
        load_plugins(extra=[unmarked])


def test_settings_reach_what_a_provider_creates() -> None:
    made: object = load_plugins(
        extra=[plugin("qilbee_register_policies", lambda: [Provider("acme.keep", lambda **settings: settings)])]
    ).policies.create("acme.keep", days=3)
    assert made == {"days": 3}


def test_a_hook_with_an_argument_that_no_hook_has_is_named() -> None:
    with pytest.raises(PluginError, match=r"qilbee_register_codecs(.|\n)*settings"):
        load_plugins(extra=[plugin("qilbee_register_codecs", lambda settings: [])])


def test_a_hook_that_raises_is_named_with_its_error_and_its_distribution() -> None:
    def broken() -> list[Provider[Codec]]:
        raise OSError("no such device")

    with pytest.raises(PluginError, match=rf"qilbee_register_codecs of {__name__} failed.*no such device"):
        load_plugins(extra=[plugin("qilbee_register_codecs", broken)])


@pytest.mark.parametrize("offered", [[Reverse], ["acme.reverse"], [None]], ids=str)
def test_what_is_no_provider_is_refused(offered: Sequence[object]) -> None:
    with pytest.raises(PluginError, match="not a Provider"):
        load_plugins(extra=[plugin("qilbee_register_codecs", lambda: offered)])


def test_a_hook_that_forgets_to_return_is_refused() -> None:
    with pytest.raises(PluginError, match=r"qilbee_register_codecs.*NoneType"):
        load_plugins(extra=[plugin("qilbee_register_codecs", lambda: None)])


def test_our_own_names_cannot_be_taken() -> None:
    with pytest.raises(PluginError, match="codec 'zstd' is provided by both qilbee-core and "):
        load_plugins(extra=[plugin("qilbee_register_codecs", lambda: [Provider("zstd", Reverse)])])


def test_the_same_name_may_be_of_two_kinds() -> None:
    plugins = load_plugins(
        extra=[
            ReversePlugin(),
            plugin("qilbee_register_serializers", lambda: [Provider("acme.reverse", Reverse)]),
        ]
    )
    assert "acme.reverse" in plugins.codecs.providers.keys() & plugins.serializers.providers.keys()


# What is missing


def test_an_unknown_name_says_what_was_sought_what_is_there_and_what_to_do() -> None:
    with pytest.raises(ProviderNotFoundError) as caught:
        load_plugins().codecs.find("acme.reverse")
    assert "no codec 'acme.reverse'" in str(caught.value)
    assert "lz4, none" in str(caught.value)
    assert "install the package that provides 'acme.reverse'" in str(caught.value)


def test_what_a_known_package_provided_once_says_which_to_install() -> None:
    with pytest.raises(ProviderNotFoundError, match="pip install acme-reverse"):
        load_plugins().codecs.create("acme.reverse", distribution="acme-reverse")


def test_a_provider_whose_library_is_missing_says_what_to_install() -> None:
    def needs_a_library() -> Codec:
        raise ModuleNotFoundError("No module named 'acmelib'", name="acmelib")

    for install, remedy in [
        ("pip install acme[fast]", "pip install acme[fast]"),
        ("", f"install what {__name__} needs"),
    ]:
        offered = [Provider("acme.fast", needs_a_library, install=install)]
        plugins = load_plugins(extra=[plugin("qilbee_register_codecs", lambda given=offered: given)])
        with pytest.raises(ProviderNotFoundError) as caught:
            plugins.codecs.create("acme.fast")
        assert "acmelib" in str(caught.value)
        assert caught.value.remedy == remedy


def test_a_provider_that_fails_to_start_is_named_and_our_own_errors_pass() -> None:
    def fails() -> Codec:
        raise ZeroDivisionError("oops")

    def refuses() -> Codec:
        raise InvalidError("no such level")

    offered = [Provider("acme.fails", fails), Provider("acme.refuses", refuses)]
    codecs = load_plugins(extra=[plugin("qilbee_register_codecs", lambda: offered)]).codecs
    with pytest.raises(PluginError, match=rf"'acme\.fails' of {__name__}.*oops"):
        codecs.create("acme.fails")
    with pytest.raises(InvalidError, match="no such level"):
        codecs.create("acme.refuses")


# Observers


class Observer:
    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    @hookimpl
    def qilbee_episodes_stored(self, agent_id: str, episodes: Sequence[Episode]) -> None:
        self.told.append((agent_id, [episode.id for episode in episodes]))


def turns(count: int) -> list[Episode]:
    return [Episode.conversation("bot", f"question {number}", "answer") for number in range(count)]


def test_nobody_is_told_where_nobody_listens() -> None:
    assert load_plugins(extra=[ReversePlugin()]).episodes_stored is None


def test_an_observer_is_told_once_for_each_batch_after_it_is_committed() -> None:
    observer, episodes = Observer(), turns(3)
    with open_store(backend="ephemeral", plugins=load_plugins(extra=[observer])) as store:
        memory = store.agent_memory("bot")
        memory.store_episodes(episodes)
        memory.store_episode(episodes[0])  # Stored already: no batch, nothing to tell.
        single = memory.store_episode(turns(1)[0])
    assert observer.told == [("bot", [episode.id for episode in episodes]), ("bot", [single])]


def test_an_observer_may_take_only_the_arguments_it_wants() -> None:
    told: list[str] = []

    def agents_only(agent_id: str) -> None:
        told.append(agent_id)

    tell = load_plugins(extra=[plugin("qilbee_episodes_stored", agents_only)]).episodes_stored
    assert tell is not None
    tell("bot", turns(1))
    assert told == ["bot"]


def test_an_observer_that_fails_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def broken(agent_id: str, episodes: Sequence[Episode]) -> None:
        raise RuntimeError("nobody home")

    before, after = Observer(), Observer()
    plugins = load_plugins(extra=[before, plugin("qilbee_episodes_stored", broken), after])
    with open_store(backend="ephemeral", plugins=plugins) as store, caplog.at_level(logging.ERROR, "qilbee_core"):
        stored = store.agent_memory("bot").store_episode(turns(1)[0])
        assert store.agent_memory("bot").get_episode(stored) is not None
    assert before.told == after.told == [("bot", [stored])]
    (record,) = [record for record in caplog.records if "qilbee_episodes_stored" in record.getMessage()]
    assert record.exc_info is not None
    assert "nobody home" in str(record.exc_info[1])


# Installed packages. Each test runs in a process of its own, with packages made for it.


class Site:
    """A directory of installed packages."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def install(self, distribution: str, source: str) -> None:
        """Install a package of one module, with an entry point of the same name."""
        module = distribution.replace("-", "_")
        self._path.joinpath(f"{module}.py").write_text(textwrap.dedent(source))
        info = self._path / f"{module}-1.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        info.joinpath("entry_points.txt").write_text(f"[qilbee_core]\n{distribution} = {module}\n")

    def run(self, script: str) -> str:
        """What ``script`` prints with these packages installed."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(self._path), *sys.path])},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, expression: str = "load_plugins()") -> str:
        """The error that ``expression`` ends with, its class first."""
        return self.run(
            f"""
            from qilbee_core import QilbeeError, load_plugins
            try:
                {expression}
            except QilbeeError as error:
                print(type(error).__name__, error)
            """
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def codec_of(name: str) -> str:
    return f"""
        from qilbee_core import Provider, hookimpl

        class Codec:
            name = {name!r}

        @hookimpl
        def qilbee_register_codecs():
            return [Provider({name!r}, Codec)]
    """


def test_an_installed_package_is_found_and_told_of_in_the_log(site: Site) -> None:
    site.install("acme-codec", codec_of("acme.codec"))
    assert "acme-codec 1.0" in site.run(
        """
        import logging, sys
        logging.basicConfig(level=logging.INFO, stream=sys.stdout)
        from qilbee_core import load_plugins
        plugins = load_plugins()
        assert plugins.codecs.create("acme.codec").name == "acme.codec"
        assert plugins.codecs.distributions["acme.codec"] == "acme-codec"
        """
    )


def test_two_packages_that_provide_the_same_name_are_both_named(site: Site) -> None:
    site.install("acme-one", codec_of("acme.codec"))
    site.install("acme-two", codec_of("acme.codec"))
    refusal = site.refusal()
    assert refusal.startswith("PluginError codec 'acme.codec' is provided by both acme-one and acme-two")
    assert "disable one of the two" in refusal


def test_a_package_that_cannot_be_imported_is_named_and_can_be_disabled(site: Site) -> None:
    site.install("acme-broken", "import a_library_that_is_not_there")
    refusal = site.refusal()
    assert refusal.startswith("PluginError plugin 'acme-broken' of acme-broken cannot be imported")
    assert "a_library_that_is_not_there" in refusal
    assert "[plugins] disabled = ['acme-broken']" in refusal
    site.run("from qilbee_core import load_plugins; load_plugins(disabled=['acme-broken'])")


def test_a_misspelt_hook_of_a_package_is_named_with_its_module(site: Site) -> None:
    site.install(
        "acme-misspelt",
        """
        from qilbee_core import hookimpl

        @hookimpl
        def qilbee_registers_codecs():
            return []
        """,
    )
    refusal = site.refusal()
    assert refusal.startswith("PluginError unknown hook 'qilbee_registers_codecs'")
    assert "acme_misspelt" in refusal


def test_a_disabled_package_is_not_even_imported(site: Site) -> None:
    site.install("acme-one", codec_of("acme.codec"))
    site.install("acme-two", "raise SystemExit('imported')")
    site.run(
        """
        from qilbee_core import Settings, load_plugins, open_store
        plugins = load_plugins(disabled=["acme-two"])
        assert "acme.codec" in plugins.codecs.providers
        assert "acme.codec" not in load_plugins(disabled=["acme-two", "acme-one"]).codecs.providers
        settings = {"plugins": {"disabled": ["acme-two"]}, "storage": {"backend": "ephemeral"}}
        open_store(Settings.load(settings, environ={})).close()
        """
    )


def test_disabling_what_is_not_installed_is_an_error_in_the_configuration(site: Site) -> None:
    site.install("acme-one", codec_of("acme.codec"))
    refusal = site.refusal("load_plugins(disabled=['acme-oen'])")
    assert refusal.startswith("SettingsError")
    assert "'acme-oen'" in refusal
    assert "'acme-one'" in refusal


def test_a_library_that_is_missing_hurts_only_those_who_need_it(site: Site, tmp_path: Path) -> None:
    assert (
        site.run(
            f"""
        import sys
        sys.modules["plyvel"] = None
        from pathlib import Path
        from qilbee_core import *
        plugins = load_plugins()
        plugins.backends.create("ephemeral", BackendOptions(path=Path({str(tmp_path)!r}))).close()
        try:
            plugins.backends.create("leveldb", BackendOptions(path=Path({str(tmp_path)!r})))
        except ProviderNotFoundError as error:
            print(error)
        """
        ).strip()
        == "backend 'leveldb' needs plyvel, which cannot be imported: pip install 'qilbee-core[leveldb]'"
    )


def test_finding_plugins_loads_no_engine_and_no_codec(site: Site) -> None:
    loaded = site.run(
        """
        import sys
        from qilbee_core import load_plugins
        load_plugins(disabled=[])
        print(*{"rocksdict", "plyvel", "lz4", "snappy", "zstandard"} & sys.modules.keys())
        """
    )
    assert loaded.split() == []


def test_a_provider_is_asked_only_when_it_is_wanted(tmp_path: Path) -> None:
    asked: list[BackendOptions] = []

    def create(options: BackendOptions) -> object:
        asked.append(options)
        return object()

    plugins = load_plugins(extra=[plugin("qilbee_register_backends", lambda: [Provider("acme.engine", create)])])
    assert asked == []
    plugins.backends.create("acme.engine", BackendOptions(path=tmp_path))
    assert [options.path for options in asked] == [tmp_path]
