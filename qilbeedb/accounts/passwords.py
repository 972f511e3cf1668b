"""Passwords: Argon2id, a few at a time."""

from __future__ import annotations

import base64
import secrets
from threading import BoundedSemaphore

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from qilbee_core import InvalidError

__all__ = ["PASSWORD_BYTES_MAX", "PASSWORD_CHARACTERS_MIN", "check_password", "hash_password", "verify_password"]

PASSWORD_CHARACTERS_MIN = 8
PASSWORD_BYTES_MAX = 1024

# The second choice of OWASP's Password Storage Cheat Sheet: 19 MiB, two passes, one lane.
_MEMORY_KIB, _PASSES, _LANES = 19_456, 2, 1
_hasher = PasswordHasher(time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES, type=Type.ID)
_turns = BoundedSemaphore(2)
"""A hash takes 19 MiB; a crowd that logs in must not take them all at once."""


def _of_nobody() -> str:
    """A hash of no password: to verify one against it takes as long as against any other, and fails."""
    salt, digest = (base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${salt}${digest}"


_NOBODY = _of_nobody()


def check_password(password: str) -> None:
    """InvalidError where the password is too short or too long; what it is stands in no message."""
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise InvalidError(
            f"the password is shorter than {PASSWORD_CHARACTERS_MIN} characters", remedy="take a longer one"
        )
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise InvalidError("the password holds a lone surrogate", remedy="take another one") from None
    if size > PASSWORD_BYTES_MAX:
        raise InvalidError(f"the password is longer than {PASSWORD_BYTES_MAX} bytes", remedy="take a shorter one")


def hash_password(password: str) -> str:
    """What to store of a password that :func:`check_password` takes."""
    check_password(password)
    with _turns:
        return _hasher.hash(password)


def verify_password(password_hash: str | None, password: str) -> bool:
    """Whether the password is that of the hash. None, for nobody's, takes the same time and says no."""
    try:
        given = password.encode()
    except UnicodeEncodeError:
        given = b""
    if len(given) > PASSWORD_BYTES_MAX:  # before it is hashed
        given, password_hash = b"", None
    with _turns:
        try:
            return _hasher.verify(password_hash or _NOBODY, given)
        except (VerificationError, InvalidHashError):
            return False
