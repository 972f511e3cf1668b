"""Addresses of clients, as failures and requests are counted by."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["client_of", "is_loopback"]


@lru_cache(4096)
def client_of(address: str) -> str:
    """What stands for one client: an IPv4 address, or the network of 64 bits of an IPv6 one, which is one customer's.

    >>> client_of("::ffff:192.0.2.7"), client_of("2001:db8:1:2:3:4:5:6"), client_of("somewhere")
    ('192.0.2.7', '2001:db8:1:2::', 'unknown')
    """
    found = _parsed(address)
    if found is None:
        return "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Address(int(found) >> 64 << 64)) if not found.is_loopback else str(found)
    return str(found)


@lru_cache(4096)
def is_loopback(address: str) -> bool:
    """Whether a request comes from this machine.

    >>> is_loopback("127.0.0.1"), is_loopback("::ffff:127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.7")
    (True, True, True, False)
    """
    found = _parsed(address)
    return found is not None and found.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
