"""The command ``qilbee``, as promised: through the real script where processes matter, else through typer's runner."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

import qilbee_core
from qilbee_core import BackendOptions, Delete, Episode, Put, WriteBatch, load_plugins, open_store
from qilbee_core.cli import app
from qilbee_core.keys import AgentKeys, Space

SCRIPT = Path(sysconfig.get_path("scripts"), "qilbee")
SAMPLE = Path(qilbee_core.__file__).parent / "samples" / "conversations.jsonl"
HI = '{"agent_id": "bot", "user_input": "Hi", "agent_response": "Hello"}'


def run(*arguments: object) -> tuple[int, str]:
    """Exit status and output of a command, in this process; an exception that nobody expects is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.output


def run_script(
    *arguments: object, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def after(prelude: str, *arguments: object) -> list[str]:
    """The command line that runs the script in a process where ``prelude`` was run before."""
    return [
        sys.executable,
        "-c",
        f"import os, sys; {prelude}; os.execv(sys.argv[1], sys.argv[1:])",
        str(SCRIPT),
        *map(str, arguments),
    ]


def conversations() -> Iterator[str]:
    """Lines without end, one a second, of three agents."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in count():
        given = {
            "agent_id": f"agent-{number % 3}",
            "user_input": f"Question {number}?",
            "agent_response": f"The answer to question {number} is {number * 7919 % 104729}.",
            "event_time": (start + timedelta(seconds=number)).isoformat(),
        }
        yield json.dumps(given)


def written(path: Path, lines: Iterable[str]) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def stored(directory: Path) -> dict[str, list[str]]:
    """What each agent's user said, in order of event time."""
    with open_store(directory) as store:
        return {
            agent_id: [str(episode.content["user_input"]) for episode in store.agent_memory(agent_id).episodes()]
            for agent_id in store.agents()
        }


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """A store with three episodes of two agents."""
    with open_store(tmp_path / "store") as store:
        store.agent_memory("anna").store_episode(Episode.conversation("anna", "What for?", "For tea."))
        store.agent_memory("anna").store_episode(Episode.observation("anna", "The kettle is on."))
        store.agent_memory("bert").store_episode(Episode.action("bert", "poured", "nothing was spilt"))
    return tmp_path / "store"


# --- quickstart


def test_quickstart_stores_the_sample_and_a_new_process_reads_it(tmp_path: Path) -> None:
    process = subprocess.Popen([SCRIPT, "quickstart"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    agents = {line["agent_id"] for line in lines}
    assert f"{len(lines)} conversations of {len(agents)} agents stored: {len(lines)} new, 0 from before" in output
    reader = re.search(r"opened by process (\d+)", output)
    assert reader is not None
    assert int(reader[1]) not in {process.pid, os.getpid()}
    for agent in agents:
        assert re.search(rf"^ {agent} +\d", output, re.MULTILINE)
    newest = max(lines, key=lambda line: line["event_time"])
    assert newest["user_input"][:20] in output
    told = stored(tmp_path / "quickstart-data")
    for agent in agents:
        mine = sorted((line for line in lines if line["agent_id"] == agent), key=lambda line: line["event_time"])
        assert told[agent] == [line["user_input"] for line in mine]


def test_disk_use_is_measured_with_and_without_compression(tmp_path: Path) -> None:
    source = written(tmp_path / "input", islice(conversations(), 3000))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = run_script("quickstart", source, cwd=tmp_path, environment={"TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr
    data = {
        what.strip(): int(number.replace(",", ""))
        for what, number in re.findall(
            r"^ (input|before compression: none|after compression: lz4).*? ([\d,]+)  ", done.stdout, re.M
        )
    }
    assert data["input"] == source.stat().st_size
    assert data["after compression: lz4"] < 0.7 * data["before compression: none"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--compression", "zstd"), ("--compression", "none"), ("--backend", "leveldb", "--compression", "snappy")],
    ids=" ".join,
)
def test_quickstart_takes_the_engine_and_the_codec(options: tuple[str, ...], tmp_path: Path) -> None:
    if "leveldb" in options:
        pytest.importorskip("plyvel")
    source = written(tmp_path / "input", islice(conversations(), 100))
    status, output = run("quickstart", source, "--data", tmp_path / "store", *options)
    assert status == 0
    assert f"after compression: {options[-1]}" in output
    if "leveldb" in options:
        assert (tmp_path / "store" / "leveldb").is_dir()
    assert sum(map(len, stored(tmp_path / "store").values())) == 100


def test_a_second_run_stores_nothing_twice(tmp_path: Path) -> None:
    # One line without event time, and one that stands there twice.
    source = written(tmp_path / "input", [*islice(conversations(), 700), HI, next(conversations())])
    for expected in ("701 new, 1 from before", "0 new, 702 from before", "0 new, 702 from before"):
        status, output = run("quickstart", source, "--data", tmp_path / "store")
        assert status == 0
        assert f"702 conversations of 4 agents stored: {expected}" in output
    assert stored(tmp_path / "store")["bot"] == ["Hi"]


def test_a_file_that_grew_adds_what_is_new(tmp_path: Path) -> None:
    source = written(tmp_path / "input", [HI, *islice(conversations(), 10)])
    assert "11 new, 0 from before" in run("quickstart", source, "--data", tmp_path / "store")[1]
    written(source, [HI, *islice(conversations(), 15), HI])
    # The second "Hi" has no event time and stands on a line of its own: it was said again.
    assert "6 new, 11 from before" in run("quickstart", source, "--data", tmp_path / "store")[1]


def test_blank_lines_and_other_line_ends_are_read(tmp_path: Path) -> None:
    first, second = islice(conversations(), 2)
    source = tmp_path / "input"
    source.write_bytes(b"\xef\xbb\xbf" + f"{first}\r\n\r\n   \n{second}".encode())
    status, output = run("quickstart", source, "--data", tmp_path / "store")
    assert status == 0
    assert "2 conversations of 2 agents stored: 2 new" in output


def test_the_same_moment_in_another_zone_is_the_same_conversation(tmp_path: Path) -> None:
    lines = [HI[:-1] + f', "event_time": "2026-03-02T{time}"}}' for time in ("09:14:05Z", "10:14:05+01:00")]
    status, output = run("quickstart", written(tmp_path / "input", lines), "--data", tmp_path / "store")
    assert status == 0
    assert "1 new, 1 from before" in output


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("hello", "JSON is malformed"),
        ('["an", "array"]', "Expected `object`, got `array`"),
        ('{"agent_id": "bot", "user_input": "Hi"}', "missing required field `agent_response`"),
        (HI[:-1] + ', "mood": "good"}', "unknown field `mood`"),
        (HI.replace('"Hi"', "7"), "Expected `str`, got `int` - at `$.user_input`"),
        (HI[:-1] + ', "event_time": "yesterday"}', "Invalid RFC3339 encoded datetime - at `$.event_time`"),
        (HI[:-1] + ', "event_time": "0001-01-01T00:00:00+10:00"}', "lies outside the years 1 to 9999"),
        (HI[:-1] + ', "metadata": {"a": NaN}}', "JSON is malformed"),
        (HI[:-1] + ', "metadata": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", "recursion"),
        (HI[:-1] + ', "metadata": {"a": ' + "[" * 40 + "]" * 40 + "}}", "metadata is nested more than 32 deep"),
        (HI.replace("bot", "a/b"), "agent id 'a/b' holds '/'"),
        (HI.replace("Hi", "\\ud800"), "surrogate"),
        (HI.replace("Hi", "x" * (1 << 20)), "content takes 1048"),
        ("x" * (9 << 20), "is longer than 8388608 bytes"),
    ],
    ids=lambda text: re.sub(r"[^ -~]|/", "", text)[:40],
)
def test_a_line_of_another_shape_is_named_with_what_was_expected(line: str, complaint: str, tmp_path: Path) -> None:
    good = list(islice(conversations(), 604))
    source = written(tmp_path / "input", [*good[:603], "", line, good[603]])
    status, output = run("quickstart", source, "--data", tmp_path / "store")
    assert status == 1
    (error,) = [text for text in output.splitlines() if text.startswith("error: ")]
    assert error.startswith("error: line 605")
    assert complaint in error
    expected = 'expected one object a line with the texts "agent_id", "user_input" and "agent_response"'
    assert (
        expected in error
        or "nested" in complaint
        or "agent id" in complaint
        or "years" in complaint
        or "takes" in complaint
    )
    assert "603 conversations of 3 agents stored: 603 new" in output
    assert sum(map(len, stored(tmp_path / "store").values())) == 603


def test_bytes_that_are_not_text_are_an_error_too(tmp_path: Path) -> None:
    source = tmp_path / "input"
    source.write_bytes(HI.encode() + b"\n" + HI.replace("Hello", "\xff").encode("latin-1"))
    status, output = run("quickstart", source, "--data", tmp_path / "store")
    assert status == 1
    assert "error: line 2: 'utf-8' codec" in output
    assert "1 conversation of 1 agent stored" in output


def test_a_file_that_is_not_there_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    status, output = run("quickstart", tmp_path / "nowhere.jsonl", "--data", tmp_path / "store")
    assert status == 2
    assert "nowhere.jsonl" in output
    assert "does not exist" in output
    assert not (tmp_path / "store").exists()


def test_a_directory_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    status, output = run("quickstart", "--data", tmp_path)
    assert status == 1
    assert output.splitlines()[-1].startswith(f"error: {tmp_path} is not a store: it holds letter.txt")
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_an_engine_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    status, output = run("quickstart", "--data", tmp_path / "store", "--backend", "ephemeral")
    assert status == 1
    assert "error: the ephemeral backend keeps nothing when it is closed" in output


def test_an_engine_or_codec_that_is_not_installed_is_named_with_those_that_are(tmp_path: Path) -> None:
    assert "no backend 'rockdb'; installed are ephemeral" in run("quickstart", "--backend", "rockdb")[1]
    status, output = run("quickstart", "--data", tmp_path / "store", "--compression", "brotly")
    assert status == 1
    assert "error: no codec 'brotly'; installed are " in output


def test_the_new_process_is_not_misled_by_files_of_the_same_name(tmp_path: Path) -> None:
    for name in ("json.py", "rich.py", "qilbee_core.py"):
        (tmp_path / name).write_text("raise SystemExit('misled')")
    done = run_script("quickstart", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# Interrupted


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Path]:
    """A file of conversations that does not end: a pipe, written to as long as anybody reads."""
    path = tmp_path / "endless.jsonl"
    os.mkfifo(path)

    def write() -> None:
        with suppress(BrokenPipeError), path.open("w") as pipe:
            pipe.writelines(line + "\n" for line in conversations())

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield path
    writer.join(60)
    assert not writer.is_alive()


def test_ctrl_c_says_what_is_stored_and_a_second_run_goes_on(endless: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        after("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", "quickstart", endless, "--data", "store"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = next(line for line in process.stderr if not line.startswith("warning: "))
    assert re.fullmatch(r"storing: [\d,]+ conversations stored\n", told)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted: run the same command again to go on" in errors
    match = re.search(r"([\d,]+) conversations of 3 agents stored: ([\d,]+) new, 0 from before", output)
    assert match is not None
    number = int(match[1].replace(",", ""))
    assert number > 0
    assert sum(map(len, stored(tmp_path / "store").values())) == number

    again = written(tmp_path / "again.jsonl", islice(conversations(), number + 20))
    status, output = run("quickstart", again, "--data", tmp_path / "store")
    assert status == 0
    assert f"20 new, {number:,} from before" in output


def test_ctrl_c_later_says_so_too(tmp_path: Path) -> None:
    source = written(tmp_path / "input", islice(conversations(), 60_000))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        after("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)", "quickstart", source, "--data", "store"),
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Storing ")
    assert "60,000 conversations of 3 agents stored" in process.stdout.readline()
    while not any(log.stat().st_size > 100_000 for log in scratch.glob("*/rocksdb/db/*.log")):
        assert process.poll() is None  # it fills the second store, without compression
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("interrupted: run the same command again to go on")
    assert list(scratch.iterdir()) == []
    assert run("verify", tmp_path / "store") == (0, "3 agents, 60,000 episodes: all is as it should be\n")


def test_an_interrupt_that_somebody_else_handles_is_left_to_them(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run("quickstart", "--data", tmp_path / "store")[0] == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# The disk


def test_a_file_that_may_not_grow_is_one_line_and_what_was_stored_before_it_counts(tmp_path: Path) -> None:
    source = written(tmp_path / "input", islice(conversations(), 20_000))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    process = subprocess.run(
        after(limit, "quickstart", source, "--data", tmp_path / "store"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 1
    *warnings, error = process.stderr.splitlines()
    assert re.fullmatch(r"error: .*File too large.*: .*", error)
    assert all(re.match(r"(warning|storing): ", warning) for warning in warnings)
    match = re.search(r"([\d,]+) conversations of 3 agents stored", process.stdout)
    assert match is not None
    number = int(match[1].replace(",", ""))
    assert 0 < number < 20_000
    # Nothing that was acknowledged is missing, and going on completes it.
    assert sum(map(len, stored(tmp_path / "store").values())) >= number
    assert run("quickstart", source, "--data", tmp_path / "store")[0] == 0
    assert sum(map(len, stored(tmp_path / "store").values())) == 20_000


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    path = tmp_path / "tiny"
    path.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_is_one_line_that_says_to_make_space(tiny_disk: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "input", islice(conversations(), 50_000))
    status, output = run("quickstart", source, "--data", tiny_disk / "store")
    assert status == 1
    (error,) = [text for text in output.splitlines() if text.startswith("error: ")]
    assert "No space left on device" in error
    assert "free some space on the disk" in error


# --- a look into a store


def test_show_tells_agents_statistics_and_recent_episodes(store_path: Path) -> None:
    status, output = run("show", store_path)
    assert status == 0
    assert f"{store_path}: rocksdb, durability interval, opened by process {os.getpid()}" in output
    assert re.search(r"^ anna +2 +1\.0 +\d{4}-\d\d-\d\d +\d{4}-\d\d-\d\d +\d+ *$", output, re.M)
    assert re.search(r"^ bert +1 ", output, re.M)
    said = ["action: poured", "result: nothing was spilt", "observation: The kettle", "user: What for?", "agent: For"]
    assert [output.index(text) for text in said] == sorted(output.index(text) for text in said)


def test_show_takes_one_agent_and_a_limit(store_path: Path) -> None:
    status, output = run("show", store_path, "--agent", "anna", "--limit", "1")
    assert status == 0
    assert "bert" not in output
    assert "kettle" in output
    assert "What for?" not in output
    assert run("show", store_path, "--limit", "0")[0] == 2


def test_an_agent_that_is_not_there_is_named_with_those_that_are(store_path: Path) -> None:
    status, output = run("show", store_path, "--agent", "carl")
    assert (status, output) == (1, "error: agent 'carl' has stored nothing here: the agents are anna, bert\n")


@pytest.mark.parametrize("command", ["show", "stats", "verify", "repair", "compact"])
def test_looking_for_a_store_does_not_make_one(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        status, output = run(command, tmp_path / name)
        assert status == 1
        remedy = "check the path; qilbee quickstart makes one"
        assert output == f"error: there is no store in {tmp_path / name}: {remedy}\n"
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("command", ["show", "stats", "verify", "repair"])
def test_a_directory_or_a_file_that_is_no_store_is_refused(command: str, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    for path, complaint in ((tmp_path, "is not a store: it holds letter.txt"), (letter, "is not a directory")):
        status, output = run(command, path)
        assert status == 1
        assert re.fullmatch(rf"error: {path} {complaint}: .+\n", output)


@pytest.mark.parametrize("command", ["repair", "compact", "recover", "quickstart"])
def test_a_store_that_somebody_holds_is_not_changed_and_their_pid_is_told(
    command: str, store_path: Path, tmp_path: Path
) -> None:
    arguments = ["--data", store_path] if command == "quickstart" else [store_path]
    with open_store(store_path):
        done = run_script(command, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .* is held by process {os.getpid()}: .+\n", done.stderr)


@pytest.mark.parametrize("command", ["show", "stats", "verify"])
def test_a_store_that_somebody_holds_is_shown_as_it_is_at_this_moment(
    command: str, store_path: Path, tmp_path: Path
) -> None:
    with open_store(store_path) as store:
        store.agent_memory("late").store_episode(Episode.observation("late", "not in any table yet"))
        done = run_script(command, store_path, cwd=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(rf".* is held by process {os.getpid()}: this is what it is at this moment\n", done.stderr)
    assert {"show": "late", "stats": "rocksdb", "verify": "all is as it should be"}[command] in done.stdout


@pytest.mark.parametrize("command", ["show", "stats", "verify"])
def test_an_engine_that_cannot_be_read_beside_its_holder_says_who_that_is(command: str, tmp_path: Path) -> None:
    pytest.importorskip("plyvel")
    with open_store(tmp_path / "data", backend="leveldb"):
        done = run_script(command, tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: .* is held by process {os.getpid()}: .+\n", done.stderr)


def test_stats_tells_the_figures_of_store_and_engine(store_path: Path) -> None:
    status, output = run("stats", store_path)
    assert status == 0
    assert re.search(r"^ backend +rocksdb *$", output, re.M)
    assert re.search(r"^ engine\.sst_bytes +[\d,]+ *$", output, re.M)
    assert re.search(r"^ recent_cache\.bytes_max +16,777,216 *$", output, re.M)


def break_store(path: Path, operations: list[Put | Delete]) -> None:
    backend = load_plugins().backends.create("rocksdb", BackendOptions(path=path / "rocksdb"))
    backend.write(WriteBatch(operations))
    backend.close()


def test_verify_names_what_repair_then_mends(store_path: Path) -> None:
    assert run("verify", store_path) == (0, "2 agents, 3 episodes: all is as it should be\n")
    break_store(store_path, [Delete(AgentKeys("anna").head)])
    status, output = run("verify", store_path)
    assert status == 1
    assert re.search(r"head-missing +anna +.* +mends it", output)
    assert "error: 1 problem, of which qilbee repair mends 1: " in output
    status, output = run("repair", store_path)
    assert "rebuilt; problems before: 1, now:" in output
    assert (status, output.splitlines()[-1]) == (0, "2 agents, 3 episodes: all is as it should be")
    assert run("verify", store_path)[0] == 0


def test_what_cannot_be_repaired_stays_an_error(store_path: Path) -> None:
    with open_store(store_path) as store:
        (episode,) = store.agent_memory("bert").get_recent_episodes()
    keys = AgentKeys("bert")
    key = keys.range(Space.EPISODE)[0] + bytes.fromhex(episode.id.replace("-", ""))
    break_store(store_path, [Put(key, b"nonsense")])
    status, output = run("repair", store_path)
    assert status == 1
    assert re.search(r"record-corrupt .* cannot", output)
    assert "error: 1 problem left: restore those episodes from a copy" in output


def test_compact_gives_back_the_space_of_what_was_deleted_and_tells_how_much(store_path: Path) -> None:
    with open_store(store_path) as store:
        memory = store.agent_memory("carl")
        memory.import_episodes(Episode.observation("carl", os.urandom(500).hex()) for _ in range(2000))
        store.compact()  # else it never comes to a file of tables
        memory.clear()
    status, output = run("compact", store_path)
    assert status == 0
    sizes = re.fullmatch(rf"{store_path}: ([\d,]+) bytes before, ([\d,]+) now\n", output.replace("\n", "") + "\n")
    assert sizes is not None
    before, after = (int(size.replace(",", "")) for size in sizes.groups())
    assert after < before / 2
    assert run("verify", store_path)[0] == 0


def test_plugins_names_each_provider_and_its_package() -> None:
    status, output = run("plugins")
    assert status == 0
    for kind, name in (("backend", "rocksdb"), ("codec", "zstd"), ("serializer", "msgpack")):
        assert re.search(rf"^ {kind} +{name} +qilbee-core ", output, re.M)


# Settings


def test_a_configuration_file_says_where_the_store_is_and_how_it_is_opened(tmp_path: Path) -> None:
    config = tmp_path / "qilbee.toml"
    config.write_text(f'[storage]\ndata_path = "{tmp_path}/from-file"\nsync_writes = true\ncompression_type = "zstd"\n')
    source = written(tmp_path / "input", islice(conversations(), 50))
    status, output = run("quickstart", source, "--config", config)
    assert status == 0
    assert "after compression: zstd" in output
    status, output = run("show", "--config", config)
    assert status == 0
    assert f"{tmp_path}/from-file: rocksdb, durability sync" in output


def test_config_check_shows_each_setting_and_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "qilbee.toml"
    config.write_text("[storage]\nsync_writes = true\n[plugins]\ndisabled = []\n")
    monkeypatch.setenv("QILBEE_STORAGE_CACHE_BYTES", "2000000")
    status, output = run("config", "check", config)
    assert status == 0
    assert re.search(r"^ storage\.sync_writes +true +the file *$", output, re.M)
    assert re.search(r"^ storage\.cache_bytes +2000000 +QILBEE_STORAGE_CACHE_BYTES *$", output, re.M)
    assert re.search(r'^ storage\.serializer +"msgpack" +default *$', output, re.M)
    assert output.splitlines()[-1].endswith("is valid: durability sync, compression lz4")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[storage]\ncompresion_type = "zstd"', "did you mean 'compression_type'?"),
        ('[storage]\ncompression_type = "brotly"', "no codec 'brotly'"),
        ('[storage]\nbackend = "rockdb"', "no backend 'rockdb'"),
        ("[storage\n", "is not TOML"),
        ("[storage]\nwal_sync_interval_ms = 1", "storage.wal_sync_interval_ms is 1"),
        ('[plugins]\ndisabled = ["nobody"]', "plugins.disabled names ['nobody']"),
    ],
)
def test_a_mistake_in_a_configuration_file_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    config = tmp_path / "qilbee.toml"
    config.write_text(text)
    status, output = run("config", "check", config)
    assert status == 1
    assert output.count("\n") == 1
    assert output.startswith("error: ")
    assert complaint in output


def test_version_and_help() -> None:
    assert run("--version") == (0, "qilbee-core 0.1.0\n")
    status, output = run("--help")
    assert status == 0
    for command in ("quickstart", "show", "stats", "verify", "repair", "plugins", "config"):
        assert re.search(rf"^  {command} +\S.*[^.][.]$", output, re.M)
        assert run(command, "--help")[0] == 0
    assert run("dance")[0] == 2


# What it looks like


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Conversations that would like to be obeyed."""
    said = "\x1b[31mred \x07 [bold]markup[/bold] [/] :smile: \u202eturned\r\nover " + "long " * 2000
    line = {"agent_id": "an agent [red] with a very long name " * 5, "user_input": said, "agent_response": said}
    return written(tmp_path / "hostile.jsonl", [json.dumps(line)])


def test_a_pipe_gets_no_escape_codes_and_80_columns(hostile: Path, tmp_path: Path) -> None:
    environment = {"COLUMNS": "", "TERM": "xterm-256color"}
    done = run_script("quickstart", hostile, "--data", "store", cwd=tmp_path, environment=environment)
    assert done.returncode == 0
    assert done.stderr == ""
    assert not set(done.stdout) & {chr(code) for code in range(32)} - {"\n"}
    assert "\u202e" not in done.stdout
    assert " [31mred   [bold]markup[/bold" in done.stdout
    tables = [line for line in done.stdout.splitlines() if line.startswith(" ")]
    assert len(tables) > 10
    assert max(map(len, tables)) <= 80


def in_terminal(*arguments: object, cwd: Path) -> tuple[int, str]:
    """Exit status and output of the real script in a terminal of 80 columns."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", "LINES": "25", "TERM": "xterm-256color"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    output = bytearray()
    try:
        while piece := os.read(leader, 65536):
            output += piece
    except OSError:
        pass  # how Linux tells the end of a terminal
    os.close(leader)
    return process.wait(60), output.decode()


def test_a_terminal_gets_colour_and_a_progress_bar_that_fit_80_columns(tmp_path: Path) -> None:
    source = written(tmp_path / "input.jsonl", islice(conversations(), 5000))
    status, output = in_terminal("quickstart", "input.jsonl", cwd=tmp_path)
    assert status == 0
    assert re.search(r"storing .*━.*\d+%", output)
    assert source.stat().st_size
    visible = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
    assert max(len(line) for line in re.split(r"[\r\n]+", visible)) <= 80

    source.write_text("nonsense")
    status, output = in_terminal("quickstart", "input.jsonl", cwd=tmp_path)
    assert status == 1
    assert re.search(r"\x1b\[31merror: line 1: JSON is malformed", output)


def test_a_reader_that_goes_away_is_no_reason_for_a_traceback(store_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([SCRIPT, "stats", store_path], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_a_terminal_that_cannot_show_a_character_shows_another(tmp_path: Path) -> None:
    source = written(tmp_path / "input", [HI.replace("Hello", "Grüße, ☕")])
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_script("quickstart", source, cwd=tmp_path, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "Gr??e, ?" in done.stdout


def test_the_module_is_the_command_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qilbee_core.cli", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "qilbee-core 0.1.0\n"


# Consolidation


@pytest.fixture
def orders_path(tmp_path: Path) -> Path:
    with open_store(tmp_path / "orders") as store:
        said = [
            text for number in range(30) for text in (f"Order 47{number} is sent.", f"well, order 47{number} is sent")
        ]
        store.agent_memory("bot").store_episodes([Episode.observation("bot", text) for text in said])
    return tmp_path / "orders"


def test_consolidate_shows_what_would_be_done_does_it_and_undo_brings_it_back(orders_path: Path) -> None:
    status, output = run("consolidate", orders_path, "bot", "--policy", "duplicates", "--dry-run")
    assert status == 0
    assert "Superseded: 30" in output
    assert "Order 471 is sent." in output
    assert "and 10 more" in output
    assert "policy duplicates: 60 episodes would be 30 now" in output
    assert "0 consolidations" in run("undo", orders_path, "bot")[1]
    status, output = run("consolidate", orders_path, "bot")
    assert status == 0
    assert "policy duplicates: 60 episodes are 30 now" in output
    (consolidation_id,) = re.findall(r"qilbee undo \.\.\. (\S+)", output)
    assert "there is nothing to do among 30 episodes" in run("consolidate", orders_path, "bot")[1]
    status, output = run("undo", orders_path, "bot")
    assert (status, output.count(consolidation_id)) == (0, 1)
    assert "0 created, 30 superseded, 0 forgotten" in " ".join(output.split())
    status, output = run("undo", orders_path, "bot", consolidation_id)
    assert status == 0
    assert "30 episodes restored, 0 that were created are removed" in output
    assert "agent bot has 60 episodes now" in output
    status, output = run("undo", orders_path, "bot", consolidation_id)
    assert status == 1
    assert "no consolidation" in output


def test_consolidate_takes_its_settings_from_the_configuration(orders_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[memory]\nconsolidation_policy = "sessions"\n[memory.policies.sessions]\nratio = 0.5\n')
    status, output = run("consolidate", orders_path, "bot", "--config", config, "--dry-run")
    assert (status, "policy sessions" in output) == (0, True)
    config.write_text("[memory.policies.sessions]\nratios = 0.5\n")
    status, output = run("consolidate", orders_path, "bot", "--config", config, "--policy", "sessions")
    assert (status, "policy 'sessions' has no setting 'ratios'" in output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("consolidate", "nobody"), "agent 'nobody' has stored nothing here: the agents are bot"),
        (("consolidate", "bot", "--policy", "summaries"), "no policy 'summaries'; installed are duplicates"),
        (("undo", "bot", "yesterday"), "'yesterday' is not the id of a consolidation"),
    ],
)
def test_a_mistake_in_consolidating_is_one_line(orders_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    verb, *others = arguments
    status, output = run(verb, orders_path, *others)
    assert status == 1
    assert complaint in output
