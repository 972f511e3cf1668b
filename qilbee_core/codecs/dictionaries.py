"""The dictionaries we ship, each under a number that a record keeps.

A record that was encoded with a dictionary needs that very dictionary for ever. So one that has been
shipped never changes and never goes; a better one gets the next number. They are made of text we
wrote ourselves, by ``tools/build_dictionary.py``.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from qilbee_core.errors import DataError, ProviderNotFoundError

__all__ = ["dictionary", "shipped_dictionary"]

_SHA256 = {
    "zstd": {
        1: "35254edacca3fc3bc6852858f467f3a1d4131ac8196f642ab87db9ed747ee48b",
    },
}
"""The digest of each dictionary, by codec and number."""


def shipped_dictionary(codec_name: str) -> tuple[int, bytes] | None:
    """Number and bytes of the newest dictionary for ``codec_name``; None where there is none.

    >>> number, data = shipped_dictionary("zstd")
    >>> shipped_dictionary("lz4") is None
    True
    """
    numbers = _SHA256.get(codec_name)
    if not numbers:
        return None
    newest = max(numbers)
    return newest, dictionary(codec_name, newest)


@cache
def dictionary(codec_name: str, id: int) -> bytes:
    """The bytes of dictionary ``id`` for ``codec_name``.

    Raises ProviderNotFoundError where this release has none of that number: a newer one wrote it.
    """
    expected = _SHA256.get(codec_name, {}).get(id)
    if expected is None:
        raise ProviderNotFoundError(
            f"no {codec_name} dictionary {id} in this release", remedy="upgrade qilbee-core: pip install -U qilbee-core"
        )
    name = f"{codec_name}-{id}.dict"
    data = files(__package__).joinpath(name).read_bytes()
    # zstd would decode with a damaged dictionary too, to other bytes of the right length.
    if sha256(data).hexdigest() != expected:
        raise DataError(f"{name} of the installed qilbee-core is damaged", remedy="reinstall qilbee-core")
    return data
