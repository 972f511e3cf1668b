"""``qilbee user``, ``qilbee apikey``, ``qilbee audit``: the accounts of a server, on its data or through it.

While nobody serves a directory the commands work on it, for whoever may read and write there. A server that runs holds
it alone: with ``--url`` they go through that server, as a user who logs in. What only looks works on the directory at
any time, if its engine can be read meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from msgspec import UNSET, UnsetType

from qilbee_core import DataError, InvalidError, NotFoundError, SettingsError, Store, StoreLockedError
from qilbee_core.cli import moment, open_existing, open_to_look, say, say_aside, table, telling_errors
from qilbeedb.account_wire import KeyInfo, NewKey, UserInfo
from qilbeedb.accounts.permissions import check_roles
from qilbeedb.client import QilbeeDB

__all__ = ["apikey_app", "audit_app", "user_app"]

user_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
apikey_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
audit_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="STORE",
        help="Directory of the store, or URL of its database.  [default: that of the configuration]",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", exists=True, dir_okay=False, metavar="FILE", help="TOML file with the settings."),
]
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="A running server, instead of the directory it holds.")
]
As = Annotated[str, typer.Option("--as", metavar="NAME", help="Who logs in to the server of --url.")]
Roles = Annotated[
    list[str] | None, typer.Option("--role", metavar="ROLE", help="Read, Agent, DataScientist, Developer or Admin.")
]
Agents = Annotated[list[str] | None, typer.Option("--agent", metavar="ID", help="Only this agent; may be repeated.")]


# --- users


@user_app.command()
@telling_errors
def add(
    name: Name,
    role: Roles = None,
    agent: Agents = None,
    email: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    data: Data = None,
    config: ConfigFile = None,
    url: Url = None,
    as_user: As = "admin",
) -> None:
    """Make a user.

    The password is asked for, or read from standard input where that is no terminal. --role and --agent may be
    repeated; the role is Read where none is given.
    """
    roles = [*check_roles(role or ["Read"])]  # nobody shall think of a password in vain
    with _place(data, config, url, as_user) as place:
        made = place.create_user(name, _new_password(), email=email, roles=roles, agents=agent or None)
    say(f"{made.username} is made: {', '.join(made.roles)}, id {made.id}")


@user_app.command()
@telling_errors
def passwd(name: Name, data: Data = None, config: ConfigFile = None, url: Url = None, as_user: As = "admin") -> None:
    """Give a user another password, and end all his sessions.

    It is asked for, or read from standard input where that is no terminal. His API keys go on.
    """
    with _place(data, config, url, as_user) as place:
        user_id = _named(place, name).id
        place.update_user(user_id, password=_new_password())
    say(f"{name} has another password, and no session")


@user_app.command()
@telling_errors
def disable(name: Name, data: Data = None, config: ConfigFile = None, url: Url = None, as_user: As = "admin") -> None:
    """Shut a user out at once: his sessions end, and his password and keys open nothing."""
    with _place(data, config, url, as_user) as place:
        place.update_user(_named(place, name).id, is_active=False)
    say(f"{name} is shut out")


@user_app.command()
@telling_errors
def enable(name: Name, data: Data = None, config: ConfigFile = None, url: Url = None, as_user: As = "admin") -> None:
    """Let a user in again who was disabled."""
    with _place(data, config, url, as_user) as place:
        place.update_user(_named(place, name).id, is_active=True)
    say(f"{name} may log in again")


@user_app.command("list")
@telling_errors
def list_users(data: Data = None, config: ConfigFile = None, url: Url = None, as_user: As = "admin") -> None:
    """Show all users."""
    with _place(data, config, url, as_user, looks=True) as place:
        users = place.list_users()
    rows = [
        (
            user.username,
            ", ".join(user.roles),
            "all" if user.agents is None else ", ".join(user.agents),
            "yes" if user.is_active else "no",
            moment(user.last_login),
            user.id,
        )
        for user in users
    ]
    say(table(f"Users: {len(rows)}", ("name", "roles", "agents", "active", "last login", "id"), rows))


# --- API keys


@apikey_app.command()
@telling_errors
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    user: Annotated[str, typer.Option(metavar="NAME", help="Whose key it is; with --url, who logs in.")] = "admin",
    days: Annotated[int | None, typer.Option(min=1, help="Until it expires.  [default: never]")] = None,
    agent: Agents = None,
    permission: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="read, write, delete, plan, maintain, self or admin; may be repeated."),
    ] = None,
    data: Data = None,
    config: ConfigFile = None,
    url: Url = None,
) -> None:
    """Make an API key, and show it this once.

    Without --permission it may do with memories what its user may, and nothing with accounts. The key alone goes to
    standard output.
    """
    with _place(data, config, url, user) as place:
        made = place.create_api_key(name, expires_in_days=days, agents=agent or None, permissions=permission or None)
    say_aside(f"the key {made.name!r} of {user}, id {made.id}; it is not shown again:")
    say(made.key)


@apikey_app.command("list")
@telling_errors
def list_keys(data: Data = None, config: ConfigFile = None, url: Url = None, as_user: As = "admin") -> None:
    """Show all API keys, without what opens anything."""
    with _place(data, config, url, as_user, looks=True) as place:
        keys, names = place.list_api_keys(everybodys=True), {user.id: user.username for user in place.list_users()}
    rows = [
        (
            key.name,
            names.get(key.user_id, key.user_id),
            key.prefix,
            "its user's" if key.agents is None else ", ".join(key.agents),
            "on memories" if key.permissions is None else ", ".join(key.permissions),
            moment(key.expires_at) or "never",
            key.id,
        )
        for key in keys
    ]
    columns = ("name", "user", "begins with", "agents", "permissions", "expires", "id")
    say(table(f"API keys: {len(rows)}", columns, rows))


@apikey_app.command()
@telling_errors
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, or what it begins with.")],
    data: Data = None,
    config: ConfigFile = None,
    url: Url = None,
    as_user: As = "admin",
) -> None:
    """Let an API key open nothing from now on."""
    with _place(data, config, url, as_user) as place:
        found = [each for each in place.list_api_keys(everybodys=True) if key in (each.id, each.prefix)]
        if len(found) != 1 or not place.delete_api_key(found[0].id):
            raise NotFoundError(f"no single API key is {key!r}", remedy="qilbee apikey list shows them")
    say(f"{found[0].name!r} is revoked")


# --- the audit log


@audit_app.command()
@telling_errors
def verify(
    known: Annotated[
        str | None,
        typer.Option("--known", metavar="NUMBER:HASH", help="An end of the log that was noted down before."),
    ] = None,
    data: Data = None,
    config: ConfigFile = None,
) -> None:
    """Check that nobody has changed, removed or added events of the audit log.

    Shows its end, to note down elsewhere: with --known a later run finds out whether the log still goes on from there,
    also if somebody has written all of it anew.
    """
    with open_to_look(data, config) as store:
        from qilbeedb.accounts import audit  # noqa: PLC0415
        from qilbeedb.accounts.tables import Tables  # noqa: PLC0415

        report = audit.verify(Tables(store), _end(known))
    for problem in report.problems:
        say(problem)
    if not report.ok:
        raise DataError(
            f"the audit log is not what was recorded: {len(report.problems)} problems",
            remedy="keep the directory as it is, and ask who could write to it",
        )
    say(f"{report.events:,} events, all as they were recorded; the end is {report.events}:{report.hash}")


def _end(known: str | None) -> tuple[int, str] | None:
    if known is None:
        return None
    number, _, its_hash = known.partition(":")
    if not number.isdecimal() or len(its_hash) != 64:
        raise InvalidError(f"{known!r} is no end of a log", remedy="give what an earlier run showed, NUMBER:HASH")
    return int(number), its_hash


# --- where the accounts are


class _Directory:
    """The accounts in a directory, with the verbs that the client of a server has."""

    def __init__(self, store: Store, user: str) -> None:
        from qilbeedb.accounts import Caller  # noqa: PLC0415  # all that needs the extra "server"
        from qilbeedb.accounts.keys import Keys  # noqa: PLC0415
        from qilbeedb.accounts.tables import Tables  # noqa: PLC0415
        from qilbeedb.accounts.users import Users  # noqa: PLC0415

        tables = Tables(store)
        self._users, self._keys = Users(store, tables), Keys(store, tables)
        self._user = user
        self._caller = Caller(user_agent="qilbee")

    def create_user(
        self, name: str, password: str, *, email: str | None, roles: list[str], agents: list[str] | None
    ) -> UserInfo:
        return self._users.create(self._caller, name, password, email=email, roles=roles, agents=agents)

    def list_users(self) -> list[UserInfo]:
        return self._users.all()

    def update_user(
        self, user_id: str, *, password: str | UnsetType = UNSET, is_active: bool | UnsetType = UNSET
    ) -> UserInfo:
        return self._users.update(self._caller, user_id, password=password, is_active=is_active)

    def create_api_key(
        self,
        name: str,
        *,
        expires_in_days: int | None,
        agents: list[str] | None,
        permissions: list[str] | None,
    ) -> NewKey:
        return self._keys.create(
            self._caller,
            self._users.named(self._user).id,
            name,
            expires_in_days=expires_in_days,
            agents=agents,
            permissions=permissions,
        )

    def list_api_keys(self, *, everybodys: bool) -> list[KeyInfo]:
        return self._keys.all(None if everybodys else self._users.named(self._user).id)

    def delete_api_key(self, key_id: str) -> bool:
        try:
            self._keys.revoke(self._caller, key_id)
        except NotFoundError:
            return False
        return True


@contextmanager
def _place(
    data: str | None, config: Path | None, url: str | None, user: str, *, looks: bool = False
) -> Iterator[_Directory | QilbeeDB]:
    """Where the accounts are that a command is about: in a directory, or behind a server."""
    if url is not None:
        with _logged_in(url, user) as server:
            yield server
        return
    try:
        store = (open_to_look if looks else open_existing)(data, config)
    except StoreLockedError as error:
        raise StoreLockedError(
            error.message, remedy="if that is a server, go through it: --url http://127.0.0.1:7474"
        ) from error
    with store:
        yield _directory(store, user)


def _directory(store: Store, user: str) -> _Directory:
    try:
        return _Directory(store, user)
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"accounts need {error.name}, which is not installed", remedy="pip install 'qilbee-core[server]'"
        ) from error


def _logged_in(url: str, user: str) -> QilbeeDB:
    api_key = os.environ.get("QILBEE_API_KEY")
    if api_key:
        return QilbeeDB({"uri": url, "api_key": api_key})
    server = QilbeeDB(url)
    try:
        server.login(user, os.environ.get("QILBEE_PASSWORD") or _asked(f"Password of {user} on {url}"))
    except BaseException:
        server.close()
        raise
    return server


def _new_password() -> str:
    return _asked("New password", confirmed=True)


def _asked(what: str, *, confirmed: bool = False) -> str:
    """A password, without showing it; the next line of standard input where that is no terminal."""
    if sys.stdin.isatty():
        found: str = typer.prompt(what, hide_input=True, confirmation_prompt=confirmed, err=True)
    else:
        found = sys.stdin.readline().rstrip("\r\n")
    if not found:
        raise InvalidError("no password was given", remedy="type it, or write it to standard input")
    return found


def _named(place: _Directory | QilbeeDB, name: str) -> UserInfo:
    for user in place.list_users():
        if user.username.casefold() == name.casefold():
            return user
    raise NotFoundError(f"there is no user {name!r}", remedy="qilbee user list shows them")
