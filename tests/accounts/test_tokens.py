"""Access tokens: one algorithm, every claim required, and nothing believed that the server did not sign."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest

from qilbee_core import AuthenticationError, SettingsError, open_store
from qilbeedb.accounts import Accounts
from qilbeedb.accounts.tokens import SECRET_BYTES, Tokens, load_secret

from .conftest import ADMIN_PASSWORD, HERE

SECRET = bytes(range(32))
TOKENS = Tokens(SECRET, 900)


def claims(**changes: object) -> dict[str, Any]:
    payload = {"iss": "qilbeedb", "aud": "qilbeedb", "sub": "7", "sid": "8", "jti": "9", "iat": 1000, "exp": 1900}
    return {key: value for key, value in {**payload, **changes}.items() if value is not None}


def test_a_token_says_whose_it_is_of_which_session_and_until_when() -> None:
    found = TOKENS.read(TOKENS.issue("7", "8", 1000))
    assert (found.sub, found.sid, found.iat, found.exp) == ("7", "8", 1000, 1900)
    assert TOKENS.read(TOKENS.issue("7", "8", 1000)).jti != found.jti
    assert jwt.get_unverified_header(TOKENS.issue("7", "8", 1000)) == {"alg": "HS256", "typ": "JWT"}


def test_the_token_of_the_test_is_good_before_it_is_spoilt() -> None:
    assert TOKENS.read(jwt.encode(claims(), SECRET, algorithm="HS256")).sub == "7"


@pytest.mark.parametrize("name", ["exp", "iat", "sub", "jti", "aud", "iss", "sid"])
def test_no_claim_may_be_missing(name: str) -> None:
    with pytest.raises(AuthenticationError):
        TOKENS.read(jwt.encode(claims(**{name: None}), SECRET, algorithm="HS256"))


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "other"},
        {"aud": "other"},
        {"aud": ["other"]},
        {"exp": "1900"},
        {"exp": 1e308},
        {"sub": 7},
        {"sid": {}},
        {"jti": []},
        {"iat": True},
        {"nbf": 99_999_999_999},
    ],
    ids=str,
)
def test_no_claim_may_be_other_than_the_server_writes_it(changes: dict[str, object]) -> None:
    with pytest.raises(AuthenticationError):
        TOKENS.read(jwt.encode(claims(**changes), SECRET, algorithm="HS256"))


def forged(header: dict[str, object], payload: object, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@pytest.mark.filterwarnings("ignore")  # that the key is short for some of them
def test_no_other_algorithm_is_taken() -> None:
    others = [
        forged({"alg": "none", "typ": "JWT"}, claims()),
        forged({"alg": "None"}, claims()),
        forged({}, claims()),
        jwt.encode(claims(), SECRET, algorithm="HS384"),
        jwt.encode(claims(), SECRET, algorithm="HS512"),
        jwt.encode(claims(), b"another secret of 32 bytes......", algorithm="HS256"),
        jwt.encode(claims(), None, algorithm="none"),
        forged({"alg": "HS256", "jwk": {"kty": "oct", "k": "AA"}, "kid": "/dev/null"}, claims(), b"x" * 32),
    ]
    for token in others:
        with pytest.raises(AuthenticationError):
            TOKENS.read(token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "x" * 1_000_000,
        "\ud800.\ud800.x",
        "é.é.é",
        "[" * 3000,
        "eyJhbGciOiJIUzI1NiJ9.e30.",
        "a b",
    ],
    ids=lambda token: ascii(token)[:20],
)
def test_what_is_no_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(AuthenticationError) as told:
        TOKENS.read(token)
    assert str(told.value) == "the access token is not one of this server: log in again"


def test_a_payload_deep_enough_to_break_a_decoder_is_refused() -> None:
    import hashlib
    import hmac

    def b64(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    deep = b"[" * 1000
    signed = b64(b'{"alg":"HS256","typ":"JWT"}') + b"." + b64(deep)
    token = signed + b"." + b64(hmac.digest(SECRET, signed, hashlib.sha256))
    with pytest.raises(AuthenticationError):
        TOKENS.read(token.decode())


def test_the_secret_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "data") as store:
        accounts = Accounts.open(store, environ={"QILBEE_ADMIN_PASSWORD": ADMIN_PASSWORD})
        path = tmp_path / "data" / "accounts.secret"
        secret = path.read_bytes()
        assert len(secret) == SECRET_BYTES
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        token = accounts.sessions.login(HERE, "admin", ADMIN_PASSWORD).access_token
        accounts.close()
    with open_store(tmp_path / "data") as store:
        accounts = Accounts.open(store, environ={})
        assert path.read_bytes() == secret
        assert accounts.authenticate(f"Bearer {token}", None).username == "admin"
        accounts.close()
    assert sorted(each.name for each in path.parent.iterdir()) == ["accounts.secret", "qilbee.json", "rocksdb"]


def test_two_stores_have_two_secrets(tmp_path: Path) -> None:
    assert load_secret(tmp_path / "one") != load_secret(tmp_path / "other")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    load_secret(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_secret(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_secret_of_another_length_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{len(content)} bytes"):
        load_secret(path)


def test_a_secret_in_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot use"):
        load_secret(tmp_path / "missing" / "secret")


def test_a_link_in_the_place_of_the_file_that_is_made_first_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".secret.{os.getpid()}").symlink_to(victim)
    with pytest.raises(SettingsError):
        load_secret(tmp_path / "secret")
    assert victim.read_bytes() == b"precious"
