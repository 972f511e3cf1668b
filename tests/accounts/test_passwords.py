"""Passwords are kept as slow hashes, and checked in bounded memory and equal time."""

from __future__ import annotations

import threading
import time

import pytest
from argon2 import extract_parameters

from qilbee_core import InvalidError
from qilbeedb.accounts import passwords
from qilbeedb.accounts.passwords import PASSWORD_BYTES_MAX, check_password, hash_password, verify_password


def test_a_password_is_hashed_with_argon2id_and_its_own_salt() -> None:
    one, other = hash_password("correct horse"), hash_password("correct horse")
    assert one != other
    for each in (one, other):
        found = extract_parameters(each)
        assert (found.type.name, found.memory_cost, found.time_cost, found.parallelism) == ("ID", 19_456, 2, 1)
        assert verify_password(each, "correct horse")
        assert not verify_password(each, "correct horsE")


@pytest.mark.parametrize("password", ["", "horse", "1234567"])
def test_a_short_password_is_refused_without_being_told(password: str) -> None:
    with pytest.raises(InvalidError, match="shorter than 8") as told:
        hash_password(password)
    assert not password or password not in str(told.value)


def test_a_password_has_a_longest_length_counted_in_bytes() -> None:
    check_password("é" * (PASSWORD_BYTES_MAX // 2))
    for password in ("é" * (PASSWORD_BYTES_MAX // 2) + "x", "x" * 10_000_000):
        with pytest.raises(InvalidError, match="longer than 1024 bytes"):
            check_password(password)


def test_a_password_too_long_is_never_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    verify = passwords._hasher.verify

    class Watched:
        @staticmethod
        def verify(hash: str, password: bytes) -> bool:
            given.append(password)
            return verify(hash, password)

    monkeypatch.setattr(passwords, "_hasher", Watched)
    assert not verify_password(passwords._NOBODY, "x" * 10_000_000)
    assert given == [b""]


def test_a_lone_surrogate_is_no_password() -> None:
    with pytest.raises(InvalidError, match="surrogate"):
        hash_password("long enough \ud800")
    assert not verify_password(hash_password("long enough"), "\ud800")


def test_nobody_has_a_hash_like_any_other_and_no_password() -> None:
    found = extract_parameters(passwords._NOBODY)
    assert found == extract_parameters(hash_password("correct horse"))
    assert not verify_password(None, "correct horse")
    assert not verify_password(None, "")


def test_at_most_two_hashes_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock, two = 0, 0, threading.Lock(), threading.Barrier(2)

    class Slow:
        @staticmethod
        def hash(password: str) -> str:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            two.wait(30)  # for one more, who may
            time.sleep(0.01)  # and a third, who may not
            with lock:
                running -= 1
            return password

    monkeypatch.setattr(passwords, "_hasher", Slow)
    threads = [threading.Thread(target=hash_password, args=("long enough",)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 2
