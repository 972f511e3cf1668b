"""Credentials: the secret of a server, access tokens signed with it, and what refresh tokens and API keys look like."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
import uuid
from pathlib import Path

import jwt
import msgspec
from msgspec import Struct

from qilbee_core import AuthenticationError, SettingsError, fsync_directory

__all__ = [
    "KEY_PREFIX",
    "SECRET_BYTES",
    "Claims",
    "Tokens",
    "digest_of",
    "is_same",
    "load_secret",
    "new_key",
    "new_refresh",
]

SECRET_BYTES = 32
KEY_PREFIX = "qilbee_live_"
_ALGORITHM = "HS256"
_ISSUER = "qilbeedb"
_AUDIENCE = "qilbeedb"
_TOKEN_CHARACTERS_MAX = 2048
_REQUIRED = ["exp", "iat", "sub", "jti", "aud", "iss"]


class Claims(Struct, frozen=True):
    """What an access token says: whose it is, of which session, and how long it is good, in seconds."""

    sub: str
    sid: str
    jti: str
    iat: int
    exp: int


class Tokens:
    """Signs access tokens, and reads them. One algorithm; what a token says of its own is not listened to."""

    def __init__(self, secret: bytes, access_token_s: int) -> None:
        self._secret = secret
        self.access_token_s = access_token_s

    def issue(self, user_id: str, session_id: str, now_s: int) -> str:
        """An access token of a session."""
        claims = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": user_id,
            "sid": session_id,
            "jti": uuid.uuid4().hex,
            "iat": now_s,
            "exp": now_s + self.access_token_s,
        }
        return jwt.encode(claims, self._secret, algorithm=_ALGORITHM)

    def read(self, token: str) -> Claims:
        """What a token of ours says, also when it has expired; AuthenticationError for any other."""
        try:
            if len(token) > _TOKEN_CHARACTERS_MAX:
                raise jwt.InvalidTokenError
            payload = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                audience=_AUDIENCE,
                issuer=_ISSUER,
                # Expiry is the caller's to check, by the clock of accounts.
                options={"require": _REQUIRED, "verify_exp": False, "verify_iat": False},
            )
            return msgspec.convert(payload, Claims)
        except (jwt.InvalidTokenError, msgspec.ValidationError, UnicodeError, RecursionError):
            raise AuthenticationError("the access token is not one of this server") from None

    def digest_of_name(self, folded: str) -> str:
        """What stands for a name in rows about failed logins, from which it cannot be told without the secret."""
        return hmac.digest(self._secret, folded.encode(errors="surrogatepass"), "sha256").hex()[:32]


def digest_of(credential: str) -> bytes:
    """What is stored of a credential that is random: nobody can guess it, so it needs no slow hash."""
    return hashlib.sha256(credential.encode(errors="surrogatepass")).digest()


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two digests are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def new_refresh(session_id: str) -> str:
    """A refresh token: which session it is of, and 32 random bytes."""
    return f"{session_id}.{secrets.token_urlsafe(32)}"


def new_key(key_id: str) -> str:
    """An API key: which one it is, and 32 random bytes."""
    return f"{KEY_PREFIX}{key_id.replace('-', '')}_{secrets.token_urlsafe(32)}"


def load_secret(path: Path) -> bytes:
    """The secret in a file that only its owner may read; made where there is none."""
    try:
        if not path.exists():
            _make_secret(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot use {path}: {error.strerror}", remedy="check the path and whose it is") from error
    if mode & 0o077:
        raise SettingsError(f"{path} has mode {mode:03o}: others may sign tokens with it", remedy=f"chmod 600 {path}")
    if len(secret) != SECRET_BYTES:
        raise SettingsError(
            f"{path} has {len(secret)} bytes, a secret has {SECRET_BYTES}",
            remedy="restore it, or remove it: a new one ends all sessions",
        )
    return secret


def _make_secret(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary)  # whole or not at all; of two who start at once the second reads the first's
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    fsync_directory(path.parent)
