"""Running the server: open the store, listen, answer, and end without losing anything.

SIGTERM and Ctrl-C end it: no connection is taken any more, requests under way are finished for as long as the settings
say, then accounts and store are closed. A second signal does not wait for the requests.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import closing
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from qilbee_core import SettingsError, Store, open_store
from qilbeedb.accounts import Accounts, Caller
from qilbeedb.server.app import create_app
from qilbeedb.server.logs import set_up
from qilbeedb.server.protocol import protocol
from qilbeedb.server.settings import ServerSettings, ServiceSettings

__all__ = ["listen", "serve", "uvicorn_config"]

log = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.001
"""How long a thread of the pool keeps the interpreter from the event loop; 5 ms by default, which one would notice."""
_BACKLOG = 2048
_FILES_BESIDE = 1024
"""What the store may have open beside the connections, about."""


def serve(settings: ServiceSettings, *, ready: Callable[[str], object] = lambda _: None) -> None:
    """Serve until a signal ends it. ``ready`` is called with the URL once requests are answered.

    SettingsError where it cannot listen as the settings say, and what :func:`~qilbee_core.open_store` raises.
    """
    its = settings.server
    os.umask(0o077)  # whatever is made from now on is for this user alone
    set_up(its.log_level, its.log_format)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _check_tls(its)
    _allow_files(its.connections_max)
    # The store is closed with the application, but for where a second signal ends the server: so here again.
    with closing(listen(its)) as listener, open_store(settings) as store:
        accounts = None if its.insecure_no_login else _open_accounts(store, settings)
        app = create_app(store, accounts, settings)
        server = _Server(uvicorn_config(app, its), ready, _url(its, listener))

        def end(_number: int, _frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn takes the signals over while it runs, and hands on those that came once it has ended.
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)
        gc.collect()
        gc.freeze()  # what is here now stays: looking through it again and again takes a tenth of a request
        server.run(sockets=[listener])
        if accounts is not None:
            accounts.close()
    log.info("ended")


def _check_tls(its: ServerSettings) -> None:
    """Refuse what TLS cannot use before anything is opened, or a first password told that nobody sees."""
    if its.tls_certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(its.tls_certificate, its.tls_key)
    except OSError as error:  # a file that cannot be read, or what OpenSSL says of it
        raise SettingsError(
            f"TLS cannot use server.tls_certificate {its.tls_certificate!r} with server.tls_key {its.tls_key!r}: "
            f"{error.strerror}",
            remedy="name two PEM files that can be read and belong together",
        ) from error


def _allow_files(connections: int) -> None:
    """Let this process have as many files open as it may: a connection is one too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if resource.RLIM_INFINITY != hard < connections + _FILES_BESIDE:
        log.warning(
            "the system lets this process have %d files open, too few for server.connections_max = %d: "
            "raise the limit (LimitNOFILE of systemd, ulimit -n), or lower the setting",
            hard,
            connections,
        )


def _open_accounts(store: Store, settings: ServiceSettings) -> Accounts:
    accounts = Accounts.open(store, settings.accounts)
    if accounts.first_password is not None:
        # On the terminal of whoever starts it, and nowhere else.
        print(f"The first administrator is admin, with the password {accounts.first_password}", file=sys.stderr)  # noqa: T201
    accounts.record("server_started", Caller(user_agent="qilbee serve"), "start")
    return accounts


class _Server(uvicorn.Server):
    """uvicorn's, that tells when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], object], url: str) -> None:
        super().__init__(config)
        self._ready = ready
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening on %s", self._url)
        self._ready(self._url)


def uvicorn_config(app: ASGIApp, its: ServerSettings) -> uvicorn.Config:
    """How uvicorn is to serve the application."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol(its.receive_timeout_s, its.connections_max),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=max(1, round(its.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(its.shutdown_timeout_s)),
        ssl_certfile=its.tls_certificate,
        ssl_keyfile=its.tls_key,
    )


def listen(its: ServerSettings) -> socket.socket:
    """The socket to listen on, bound before the store is opened: a port that is taken costs nothing then."""
    try:
        (family, kind, number, _, address), *_ = socket.getaddrinfo(
            its.host, its.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, number)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {its.host} port {its.port}: {error.strerror}", remedy="give another server.host or port"
        ) from error
    return listener


def _url(its: ServerSettings, listener: socket.socket) -> str:
    scheme = "http" if its.tls_certificate is None else "https"
    host = f"[{its.host}]" if ":" in its.host else its.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"
