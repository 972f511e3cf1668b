"""The tests of QilbeeDB's own memory, on PostgreSQL: those that take an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_server import needs_postgres, shared_url

pytestmark = needs_postgres

ROOT = Path(__file__).parents[3]
TESTS = [
    "test_model.py",
    "test_store_and_recall.py",
    "test_storing_twice.py",
    "test_time_model.py::test_without_history_only_what_was_superseded_is_kept",
    "test_update_delete_clear.py",
]


@pytest.mark.skipif(not (ROOT / "tests/memory").is_dir(), reason="the tests of QilbeeDB are not here")
def test_the_memory_tests_pass_on_it() -> None:
    variables = {
        **os.environ,
        "QILBEE_TEST_ENGINE": "postgres",
        "QILBEE_TEST_POSTGRES": shared_url(),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    options = ["-q", "-x", "-p", "memory_on_postgres", "-p", "no:cacheprovider", "-k", "postgres"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(ROOT / "tests/memory" / name) for name in TESTS)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
