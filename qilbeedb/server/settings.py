"""The settings of the server, in the same file and environment as those of the store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from qilbee_core import Settings, SettingsError, check_settings
from qilbeedb.accounts.settings import AccountSettings

__all__ = ["ServerSettings", "ServiceSettings", "is_loopback"]

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@A-Z*]+")


class ServerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table ``[server]``. Each key is a flag of ``qilbee serve`` too, whose help its description is."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 7474
    tls_certificate: Annotated[str, Meta(description="PEM file with the certificate and those above it.")] | None = None
    tls_key: Annotated[str, Meta(description="PEM file with the key of the certificate.")] | None = None
    allow_plain_http: Annotated[bool, Meta(description="Listen without TLS on an address that others can reach.")] = (
        False
    )
    insecure_no_login: Annotated[
        bool, Meta(description="Let everybody on this machine do everything; on a loopback address only.")
    ] = False
    cors_origins: Annotated[
        Sequence[str], Meta(description="Origins whose pages may call the server from a browser.")
    ] = ()
    trusted_proxies: Annotated[
        Sequence[str], Meta(description="Addresses or networks whose X-Forwarded-For is believed.")
    ] = ()
    snapshot_directory: (
        Annotated[str, Meta(min_length=1, description="Directory that POST /admin/snapshot copies the store into.")]
        | None
    ) = None
    body_bytes_max: Annotated[int, Meta(ge=1 << 10, le=64 << 20, description="Largest body of a request.")] = 2 << 20
    answer_bytes_max: Annotated[
        int, Meta(ge=1 << 10, le=1 << 30, description="Most bytes of episodes in an answer; the first is in any case.")
    ] = 16 << 20
    receive_timeout_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="How long headers, and then a body, may take to come in.")
    ] = 30
    keep_alive_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long a connection without requests is kept.")
    ] = 75
    connections_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Connections at once; whoever is slowest makes room for more.")
    ] = 2048
    requests_max: Annotated[int, Meta(ge=1, le=100_000, description="Requests at once; more are answered 503.")] = 1024
    slow_requests_max: Annotated[
        int, Meta(ge=1, le=100_000, description="Of those, searches and others that take long; more are answered 503.")
    ] = 64
    shutdown_timeout_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long requests may take to finish once the server is to end.")
    ] = 30
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level of what is logged.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="How a line of the log is written.")] = "text"
    log_requests: Annotated[
        Literal["all", "failed", "none"], Meta(description="Which requests are logged; failed: status 500 and above.")
    ] = "failed"

    def __post_init__(self) -> None:
        check_settings("server", self)
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError(
                "server.tls_certificate and server.tls_key go together", remedy="give both, or leave both out"
            )
        if not is_loopback(self.host):
            if self.insecure_no_login:
                raise SettingsError(
                    f"server.insecure_no_login would let everybody who reaches {self.host} do everything",
                    remedy="listen on 127.0.0.1, or let users log in",
                )
            if self.tls_certificate is None and not self.allow_plain_http:
                raise SettingsError(
                    f"passwords and memories would go to {self.host} unencrypted",
                    remedy="give server.tls_certificate and server.tls_key, or say allow_plain_http = true "
                    "where something else encrypts, for example a proxy on the same machine",
                )
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):  # a browser sends no other form, so it would never fit
                raise SettingsError(
                    f"server.cors_origins has {origin!r}", remedy='give origins like "https://app.example:8443"'
                )
        for proxy in self.trusted_proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise SettingsError(
                    f"server.trusted_proxies has {proxy!r}: {error}",
                    remedy='give addresses like "10.0.0.7" or 10.0.0.0/8',
                ) from error


class ServiceSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured: the store's tables, and those of the server.

    >>> ServiceSettings.load({"server": {"port": 8080}}, environ={"QILBEE_SERVER_LOG_FORMAT": "json"}).server.log_format
    'json'
    """

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    accounts: AccountSettings = msgspec.field(default_factory=AccountSettings)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
