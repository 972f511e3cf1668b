"""Reading requests: whatever comes in is of the form asked for, or is refused with a reason; nothing else happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec
from msgspec import Struct

from qilbee_core import InvalidError, PermissionDeniedError
from qilbeedb.exceptions import TooLargeError
from qilbeedb.server.settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import Receive

__all__ = ["DisconnectedError", "check_own_page", "client_address", "decode", "parse_query", "read_body", "unquoted"]

S = TypeVar("S", bound=Struct)

_FIELDS_MAX = 100
_HOPS_MAX = 16
"""Proxies of ours that a request may have come by. The client writes the beginning of the list."""
_JSON = b"application/json"


class DisconnectedError(Exception):
    """The client is gone; nobody waits for an answer."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], bytes_max: int) -> bytes:
    """The body of a request, counted while it comes in."""
    announced = headers.get(b"content-length")
    if announced is not None and int(announced) > bytes_max:  # a number: the parser has seen to that
        raise _too_large(bytes_max)
    if b"content-encoding" in headers:
        raise InvalidError("the body is encoded", remedy="send it as it is, without Content-Encoding")
    media_type = headers.get(b"content-type", _JSON)
    if media_type != _JSON and media_type.split(b";")[0].strip().lower() != _JSON:
        shown = media_type[:80].decode("latin-1")
        raise InvalidError(f"the body is {shown!r}", remedy="send JSON, with Content-Type: application/json")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = bytearray(body)
        while message.get("more_body"):
            message = await receive()
            parts += message.get("body", b"")
            if len(parts) > bytes_max:
                raise _too_large(bytes_max)
        body = bytes(parts)
    if message["type"] == "http.disconnect":
        raise DisconnectedError
    if len(body) > bytes_max:
        raise _too_large(bytes_max)
    return body


def _too_large(bytes_max: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {bytes_max} bytes")


def decode(body: bytes, decoder: msgspec.json.Decoder[S]) -> S:
    """A JSON body in the form that the decoder is of; where a key is there twice, the last one counts."""
    try:
        return decoder.decode(body or b"{}")
    except msgspec.ValidationError as error:
        raise InvalidError(f"the body does not fit: {error}", remedy="see /docs for what the route takes") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"the body is not JSON: {error}", remedy="mend it") from None
    except RecursionError:
        raise InvalidError("the body is nested too deep", remedy="flatten it") from None


def parse_query(query: bytes, takes: type[S]) -> S:
    """The query of a request in the form of ``takes``; where a key is there twice, the last one counts.

    >>> from qilbeedb.wire import RecentQuery
    >>> parse_query(b"limit=3&type=action", RecentQuery).limit
    3
    """
    given: dict[str, str] = {}
    if query:
        pairs = query.split(b"&", _FIELDS_MAX)
        if len(pairs) > _FIELDS_MAX:
            raise InvalidError(f"the query has more than {_FIELDS_MAX} keys", remedy="see /docs for those there are")
        for pair in pairs:
            if pair:
                key, _, value = pair.partition(b"=")
                given[_query_text(key)] = _query_text(value)
    try:
        return msgspec.convert(given, takes, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the query does not fit: {error}", remedy="see /docs for what the route takes") from None


def _query_text(quoted: bytes) -> str:
    return unquoted(quoted.replace(b"+", b" ").decode("latin-1"), "the query")


def unquoted(text: str, where: str) -> str:
    """Text as it was before it was quoted for an address.

    >>> unquoted("my%20agent", "the path")
    'my agent'
    """
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeError:
        raise InvalidError(f"{where} is not UTF-8", remedy="quote what is not ASCII, as UTF-8") from None


def check_own_page(headers: Mapping[bytes, bytes], origins: Sequence[str]) -> None:
    """Refuse what a page of somebody else has a browser on this machine ask for; for servers without login.

    A browser says in ``Origin`` whose page sends something. What only reads comes without it, and its answer is kept
    from the page, unless that has made its own name lead to this machine: then the name is in ``Host``.

    >>> check_own_page({b"host": b"localhost:7474", b"origin": b"http://localhost:7474"}, ())
    >>> check_own_page({b"host": b"localhost:7474", b"origin": b"https://app.example"}, ["https://app.example"])
    >>> check_own_page({b"host": b"evil.example:7474"}, ())
    Traceback (most recent call last):
    ...
    qilbee_core.errors.PermissionDeniedError: this server runs without login, for this machine alone: ...
    """
    host = headers.get(b"host", b"localhost").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    try:
        is_ours = is_loopback(urlsplit(f"//{host}").hostname or "")
        is_ours = is_ours and (not origin or origin in origins or urlsplit(origin).netloc == host)
    except ValueError:  # of brackets that do not match
        is_ours = False
    if not is_ours:
        raise PermissionDeniedError(
            "this server runs without login, for this machine alone",
            remedy="call it as localhost; for a page from elsewhere, list its origin in server.cors_origins",
        )


def client_address(peer: str, headers: Mapping[bytes, bytes], trusted: tuple[IPv4Network | IPv6Network, ...]) -> str:
    """The address that a request comes from: the last one on its way that is not a proxy of ours.

    >>> from ipaddress import ip_network
    >>> ours = (ip_network("10.0.0.0/8"),)
    >>> client_address("10.0.0.7", {b"x-forwarded-for": b"6.6.6.6, 192.0.2.1, 10.0.0.9"}, ours)
    '192.0.2.1'
    >>> client_address("192.0.2.1", {b"x-forwarded-for": b"6.6.6.6"}, ours)
    '192.0.2.1'
    """
    forwarded = headers.get(b"x-forwarded-for")
    if forwarded is None or not trusted:
        return peer
    hops = [hop.strip() for hop in forwarded.decode("latin-1").rsplit(",", _HOPS_MAX)]
    address = peer
    while hops and _is_in(address, trusted):
        hop = hops.pop()
        try:
            ip_address(hop)
        except ValueError:
            break
        address = hop
    return address


def _is_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed  # as a socket for both tells an address of IPv4
    return any(parsed in network for network in networks)
